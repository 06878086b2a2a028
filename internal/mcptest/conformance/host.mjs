// host.mjs URL: the client that the official suite starts. It plays the host
// before haldir ($HALDIR), whose one upstream is the suite's server at URL.
import { spawn } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

const dir = mkdtempSync(join(process.env.TMPDIR ?? tmpdir(), 'host-')); // 0700, as haldir wants it
const config = join(dir, 'haldir.yaml');
writeFileSync(config, `version: 1\nupstreams:\n  - {name: up, url: ${JSON.stringify(process.argv.at(-1))}}\n`);
const haldir = spawn(process.env.HALDIR, ['serve', '--config', config, '--state-dir', dir], { stdio: ['pipe', 'pipe', 'inherit'] });
const ended = new Promise((done) => haldir.on('exit', done));
setTimeout(() => { console.error('no end within 45 s'); haldir.kill(); process.exit(1); }, 45_000).unref();

let last = 0;
const waiting = new Map();
const send = (m) => haldir.stdin.write(JSON.stringify({ jsonrpc: '2.0', ...m }) + '\n');
const request = (method, params) => new Promise((done, failed) => {
  waiting.set(++last, (m) => (m.error ? failed(new Error(`${method}: ${m.error.message}`)) : done(m.result)));
  send({ id: last, method, params });
});
createInterface({ input: haldir.stdout }).on('line', (line) => {
  const m = JSON.parse(line); // anything else on stdout is a failure
  if (m.method === undefined) return waiting.get(m.id)(m);
  if (m.id === undefined) return;
  if (m.method !== 'elicitation/create') return send({ id: m.id, error: { code: -32601, message: 'Method not found' } });
  const content = {};
  for (const [name, schema] of Object.entries(m.params.requestedSchema.properties)) {
    if (schema.default !== undefined) content[name] = schema.default;
  }
  send({ id: m.id, result: { action: 'accept', content } });
});

await request('initialize', {
  protocolVersion: '2025-11-25',
  capabilities: { elicitation: { form: { applyDefaults: true } } },
  clientInfo: { name: 'conformance', version: '1' },
});
send({ method: 'notifications/initialized' });
const { tools } = await request('tools/list', {});
const call = (tool, args = {}) => request('tools/call', { name: `up__${tool}`, arguments: args });
switch (process.env.MCP_CONFORMANCE_SCENARIO) {
  case 'initialize':
    break;
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
  default:
    throw new Error(`no such scenario here: ${process.env.MCP_CONFORMANCE_SCENARIO}`);
}
haldir.stdin.end();
process.exit((await ended) === 0 ? 0 : 1);
