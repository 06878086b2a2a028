// bridge.mjs COMMAND…: the streamable HTTP server that the official suite expects
// before a server that speaks stdio. It prints its URL. Each session is a process
// of COMMAND; with HOST=modern there are no sessions and one process is for all.
// PREFIX is taken off the names of tools and prompts and put back. What the process
// must not do goes to stderr as a line that begins BREACH.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

const command = process.argv.slice(2);
const prefix = process.env.PREFIX ?? '';
const VERSION = 'io.modelcontextprotocol/protocolVersion';
const SUBSCRIPTION = 'io.modelcontextprotocol/subscriptionId';
const processes = new Set();
const sessions = new Map();
const breach = (what, line) => console.error(`BREACH ${what}: ${line.slice(0, 300)}`);
const local = (host) => ['localhost', '127.0.0.1'].includes(host?.split(':')[0]);

// inward puts the prefix on what names a tool or prompt, outward takes it off.
function inward(m) {
  const named = { 'tools/call': m.params, 'prompts/get': m.params, 'completion/complete': m.params?.ref }[m.method];
  if (typeof named?.name === 'string') named.name = prefix + named.name;
  return m;
}
function outward(m) {
  for (const x of [...(m.result?.tools ?? []), ...(m.result?.prompts ?? [])]) {
    if (x.name.startsWith(prefix)) x.name = x.name.slice(prefix.length);
  }
  return m;
}

function json(res, status, m) {
  res.writeHead(status, { 'content-type': 'application/json' });
  res.end(JSON.stringify(m));
}
function refuse(res, status, message, code = -32000, id = null) {
  json(res, status, { jsonrpc: '2.0', id, error: { code, message } });
}
function open(res, headers) {
  res.writeHead(200, { 'content-type': 'text/event-stream', ...headers });
  res.flushHeaders();
  return res;
}
const event = (m) => `event: message\ndata: ${JSON.stringify(m)}\n\n`;

// Process is one of COMMAND.
class Process {
  waiting = new Map(); // what waits for an answer, by the id that the process knows, the newest last
  left = new Set(); // ids of what does not wait any more; the answer may have been on its way

  constructor() {
    processes.add(this);
    this.child = spawn(command[0], command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] });
    this.child.stdin.on('error', () => {});
    this.child.on('exit', (code, signal) => {
      const asked = this.over;
      if (!asked || code !== 0) breach('an end of its own, or with an error', `${code ?? signal}`);
      processes.delete(this);
      this.end();
      if (!asked) this.lost();
    });
    createInterface({ input: this.child.stdout }).on('line', (line) => {
      let m;
      try { m = JSON.parse(line); } catch { return breach('not JSON', line); }
      if (m?.jsonrpc !== '2.0') return breach('not JSON-RPC', line);
      outward(m);
      if (m.method !== undefined) return this.tell(m, line);
      const w = this.waiting.get(m.id);
      this.waiting.delete(m.id);
      if (w !== undefined) this.answer(w, m);
      else if (!this.left.has(m.id)) breach('a response nobody waits for', line);
    });
  }
  send(m) {
    this.child.stdin.write(JSON.stringify(inward(m)) + '\n');
  }
  end() {
    this.over = true;
    this.child.stdin.end();
  }
  lost() {}
}

// Session is a client of the handshake era. What waits are its streams.
class Session extends Process {
  id = randomUUID();
  tokens = new Map(); // progress token → id
  early = []; // what came before there was a stream for it
  get; // the stream of the session itself

  constructor() {
    super();
    sessions.set(this.id, this);
  }
  answer(stream, m) {
    stream.end(event(m));
  }
  tell(m) {
    const about = m.method === 'notifications/progress' && this.waiting.get(this.tokens.get(m.params.progressToken));
    const stream = about || [...this.waiting.values()].at(-1) || this.get;
    if (stream) stream.write(event(m));
    else this.early.push(event(m));
  }
  take(m, res) {
    if (m.method !== undefined && m.id !== undefined) {
      this.waiting.set(m.id, this.open(res));
      const token = m.params?._meta?.progressToken;
      if (token !== undefined) this.tokens.set(token, m.id);
    } else {
      res.writeHead(202).end();
    }
    this.send(m);
  }
  open(res) {
    return open(res, { 'mcp-session-id': this.id });
  }
  listen(res) {
    this.get = this.open(res);
    res.on('close', () => { this.get = undefined; });
    for (const e of this.early.splice(0)) res.write(e);
  }
  end() {
    super.end();
    sessions.delete(this.id);
    for (const stream of [...this.waiting.values(), this.get]) stream?.end();
  }
}

// Modern is the process of all modern clients. They choose ids and progress tokens
// without knowing of each other, so a number of ours stands for both.
class Modern extends Process {
  last = 0;

  take(m, res, headers) {
    const wrong = mismatch(m, headers);
    if (wrong) return refuse(res, 400, `the header ${wrong} is not that of the message`, -32020, m.id);
    if (m.method === undefined) return refuse(res, 400, 'not a request', -32600, m.id);
    if (m.id === undefined) {
      this.send(m);
      return res.writeHead(202).end();
    }
    const n = ++this.last;
    const token = m.params?._meta?.progressToken;
    this.waiting.set(n, { id: m.id, token, method: m.method, res });
    res.on('close', () => {
      if (!this.waiting.delete(n)) return;
      this.left.add(n);
      this.send({ jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: n } });
    });
    if (token !== undefined) m.params._meta.progressToken = n;
    this.send({ ...m, id: n });
  }
  answer(w, m) {
    m.id = w.id;
    if (m.result?._meta?.[SUBSCRIPTION] !== undefined) m.result._meta[SUBSCRIPTION] = w.id;
    if (m.error && !w.res.headersSent) return json(w.res, statuses[m.error.code] ?? 200, m);
    this.stream(w).end(event(m));
  }
  tell(m, line) {
    if (m.id !== undefined) return breach('a request of the handshake era', line);
    const p = m.params ?? {};
    let n = p._meta?.[SUBSCRIPTION];
    if (m.method === 'notifications/progress') n = p.progressToken;
    if (m.method === 'notifications/message') n = [...this.waiting.keys()].filter((k) => this.waiting.get(k).method !== 'subscriptions/listen').at(-1);
    const w = this.waiting.get(n);
    if (w === undefined) {
      if (!this.left.has(n)) breach('a notification that belongs to no request', line);
      return;
    }
    if (p.progressToken !== undefined) p.progressToken = w.token;
    if (p._meta?.[SUBSCRIPTION] !== undefined) p._meta[SUBSCRIPTION] = w.id;
    this.stream(w).write(event(m));
  }
  stream({ res }) {
    return res.headersSent ? res : open(res);
  }
  lost() {
    process.exit(1); // so the suite need not wait for its timeouts
  }
}

// statuses are what HTTP adds to the errors of the modern era.
const statuses = { '-32601': 404 };
for (const code of [-32700, -32600, -32602, -32020, -32021, -32022]) statuses[code] = 400;

// mismatch names the header that does not say what the message says.
function mismatch(m, headers) {
  const version = m.params?._meta?.[VERSION] ?? headers['mcp-protocol-version'];
  const name = { 'tools/call': m.params?.name, 'prompts/get': m.params?.name, 'resources/read': m.params?.uri }[m.method];
  const encoded = /^=\?base64\?(.*)\?=$/.exec(headers['mcp-name'])?.[1];
  const given = encoded === undefined ? headers['mcp-name'] : Buffer.from(encoded, 'base64').toString();
  if (!version || headers['mcp-protocol-version'] !== version) return 'MCP-Protocol-Version';
  if (headers['mcp-method'] !== m.method) return 'Mcp-Method';
  if (name !== undefined && given !== name) return 'Mcp-Name';
}

const modern = process.env.HOST === 'modern' ? new Modern() : undefined;
const server = createServer(async (req, res) => {
  const origin = req.headers.origin;
  if (!local(req.headers.host) || (origin && !local(origin.replace(/^\w+:\/\//, '')))) return refuse(res, 403, 'not from here');
  if (modern && req.method !== 'POST') return refuse(res, 405, 'POST');
  const id = req.headers['mcp-session-id'];
  let session = sessions.get(id);
  if (id && !session && !modern) return refuse(res, 404, 'no such session');
  let m;
  if (req.method === 'POST') {
    let body = '';
    for await (const chunk of req.setEncoding('utf8')) body += chunk;
    try { m = JSON.parse(body); } catch { return refuse(res, 400, 'not JSON', -32700); }
    if (modern) return modern.take(m, res, req.headers);
    if (!session && m.method === 'initialize') session = new Session();
  }
  if (!session) return refuse(res, 400, 'a session is needed');
  if (req.method === 'POST') return session.take(m, res);
  if (req.method === 'GET') return session.listen(res);
  if (req.method !== 'DELETE') return refuse(res, 405, 'POST, GET or DELETE');
  session.end();
  res.writeHead(200).end();
});
server.listen(0, '127.0.0.1', () => console.log(`http://localhost:${server.address().port}/mcp`));

// SIGTERM ends all processes, which must go of themselves.
process.on('SIGTERM', () => {
  for (const p of processes) p.end();
  const exits = [...processes].map((p) => new Promise((done) => p.child.once('exit', done)));
  Promise.all(exits).then(() => process.exit(0));
  setTimeout(() => {
    for (const p of processes) {
      breach('a process that stays when its stdin has ended', `pid ${p.child.pid}`);
      p.child.kill('SIGKILL');
    }
    setTimeout(() => process.exit(1), 500);
  }, 15_000);
});
