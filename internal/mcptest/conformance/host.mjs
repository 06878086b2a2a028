// host.mjs URL: the client that the official suite starts. It plays the host, of
// the era $HOST, before haldir ($HALDIR), whose one upstream is the suite's server
// at URL.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const dir = mkdtempSync(join(process.env.TMPDIR ?? tmpdir(), 'host-')); // 0700, as haldir wants it
const config = join(dir, 'haldir.yaml');
const scenario = process.env.MCP_CONFORMANCE_SCENARIO;
const url = process.argv.at(-1);
const given = JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT ?? '{}');
const auth = {
  'auth/basic-cimd': { client_metadata_url: 'https://conformance-test.local/client-metadata.json' },
  'auth/pre-registration': { client_id: given.client_id, client_secret: given.client_secret },
  'auth/client-credentials-basic': { grant: 'client_credentials', client_id: given.client_id, client_secret: given.client_secret },
}[scenario] ?? {};
const upstream = { name: 'up', url, ...(scenario.startsWith('auth/') ? { auth: { type: 'oauth', ...auth } } : {}) };
writeFileSync(config, JSON.stringify({ version: 1, upstreams: [upstream] }));

// visit is a browser whose person agrees to everything.
const visit = (address) => fetch(address).then((r) => r.text());

// login is a person who signs in, as haldir tells them to. What comes of it is for the
// suite to judge.
async function login() {
  const login = spawn(process.env.HALDIR, ['upstream', 'login', 'up', '--no-browser', '--wait', '5s', '--config', config, '--state-dir', dir], { stdio: ['ignore', 'ignore', 'pipe'] });
  createInterface({ input: login.stderr }).on('line', (line) => {
    console.error(line);
    if (/^ +http/.test(line)) visit(line.trim()).catch((e) => console.error(e.message));
  });
  await once(login, 'close');
}
if (scenario.startsWith('auth/')) await login();
const haldir = spawn(process.env.HALDIR, ['serve', '--config', config, '--state-dir', dir], { stdio: ['pipe', 'pipe', 'inherit'] });
const ended = new Promise((done) => haldir.on('exit', done));
setTimeout(() => { console.error('no end within 45 s'); haldir.kill(); process.exit(1); }, 45_000).unref();

const modern = process.env.HOST === 'modern';
const capabilities = { elicitation: { form: { applyDefaults: true }, ...(scenario.startsWith('auth/') ? { url: {} } : {}) }, sampling: {}, roots: {} };
const clientInfo = { name: 'conformance', version: '1' };
const _meta = {
  'io.modelcontextprotocol/protocolVersion': '2026-07-28',
  'io.modelcontextprotocol/clientCapabilities': capabilities,
  'io.modelcontextprotocol/clientInfo': clientInfo,
};

let last = 0;
const waiting = new Map();
const send = (m) => haldir.stdin.write(JSON.stringify({ jsonrpc: '2.0', ...m }) + '\n');
const request = (method, params) => new Promise((done, failed) => {
  waiting.set(++last, (m) => (m.error ? failed(new Error(`${method}: ${m.error.message}`)) : done(m.result)));
  send({ id: last, method, params: modern ? { ...params, _meta } : params });
});
createInterface({ input: haldir.stdout }).on('line', (line) => {
  const m = JSON.parse(line); // anything else on stdout is a failure
  if (m.method === undefined) {
    waiting.get(m.id)(m); // and so is what nobody waits for
    return waiting.delete(m.id);
  }
  if (m.id === undefined) return;
  if (modern) throw new Error(`a request of the handshake era: ${line}`);
  send({ id: m.id, ...answer(m) });
});

// answer takes what a form proposes; for the rest it has the least there is to say.
function answer({ method, params }) {
  if (method === 'roots/list') return { result: { roots: [] } };
  if (method === 'sampling/createMessage') return { result: { role: 'assistant', content: { type: 'text', text: '' }, model: 'none' } };
  if (method !== 'elicitation/create') return { error: { code: -32601, message: 'Method not found' } };
  if (params.mode === 'url') {
    visit(params.url).catch((e) => console.error(e.message));
    return { result: { action: 'accept' } };
  }
  const content = {};
  for (const [name, schema] of Object.entries(params.requestedSchema.properties)) {
    if (schema.default !== undefined) content[name] = schema.default;
  }
  return { result: { action: 'accept', content } };
}

// ask makes a request, in as many rounds as it takes.
async function ask(method, params = {}) {
  for (let given = {}; ;) {
    const result = await request(method, { ...params, ...given });
    if (modern && !['complete', 'input_required'].includes(result.resultType)) throw new Error(`${method}: resultType ${result.resultType}`);
    if (result.resultType !== 'input_required') return result;
    given = { inputResponses: {}, requestState: result.requestState };
    for (const [key, question] of Object.entries(result.inputRequests)) given.inputResponses[key] = answer(question).result;
  }
}

if (modern) {
  await ask('server/discover');
} else {
  await request('initialize', { protocolVersion: '2025-11-25', capabilities, clientInfo });
  send({ method: 'notifications/initialized' });
}
let { tools } = await ask('tools/list');
const served = () => tools.some((t) => t.name.startsWith('up__'));
if (scenario.startsWith('auth/') && !served()) { // haldir says in its log why, and what to do
  await login();
  for (let n = 0; n < 30 && !served(); n++) {
    await new Promise((done) => setTimeout(done, 100));
    ({ tools } = await ask('tools/list'));
  }
}
const call = (tool, args = {}) => ask('tools/call', { name: `up__${tool}`, arguments: args });
switch (scenario) {
  case 'initialize':
  case 'json-schema-ref-no-deref':
  case 'request-metadata':
    break; // tools/list is all they want
  case 'tools_call':
    await call('add_numbers', { a: 2, b: 3 });
    break;
  case 'sse-retry':
    await call('test_reconnection');
    break;
  case 'elicitation-sep1034-client-defaults':
    await call('test_client_elicitation_defaults');
    break;
  case 'json-schema-2020-12-preservation':
    await call('json_schema_echo', { schema: tools.find((t) => t.name === 'up__json_schema_2020_12_tool').inputSchema });
    break;
  case 'http-standard-headers':
    for (const t of ['test_headers', 'my-hyphenated-tool']) await call(t);
    for (const { uri } of (await ask('resources/list')).resources) await ask('resources/read', { uri });
    for (const { name } of (await ask('prompts/list')).prompts) await ask('prompts/get', { name });
    break;
  case 'http-custom-headers': // the suite says which calls
    for (const c of JSON.parse(process.env.MCP_CONFORMANCE_CONTEXT).toolCalls) await call(c.name, c.arguments);
    break;
  case 'http-invalid-tool-headers': // what haldir has not kept out would be called
    for (const { name } of tools.filter((t) => t.name.startsWith('up__'))) await ask('tools/call', { name, arguments: { region: 'here' } });
    break;
  case 'sep-2322-client-request-state':
    for (const t of ['echo_state', 'no_state', 'unrelated', 'no_result_type']) await call(`test_mrtr_${t}`);
    break;
  default:
    if (!scenario.startsWith('auth/')) throw new Error(`no such scenario here: ${scenario}`);
    for (const { name } of tools.filter((t) => t.name.startsWith('up__'))) await ask('tools/call', { name, arguments: {} });
}
haldir.stdin.end();
process.exit((await ended) === 0 ? 0 : 1);
