// bridge.mjs COMMAND…: the streamable HTTP server that the official suite expects
// before a server that speaks stdio. Each session is a process of COMMAND. It
// prints its URL; PREFIX is taken off the names of tools and prompts and put back.
// What the process must not write goes to stderr as a line that begins BREACH.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

const command = process.argv.slice(2);
const prefix = process.env.PREFIX ?? '';
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

class Session {
  id = randomUUID();
  posts = new Map(); // streams of requests that wait, by id, the newest last
  tokens = new Map(); // progress token → id
  early = []; // what came before there was a stream for it
  get; // the stream of the session itself

  constructor() {
    sessions.set(this.id, this);
    this.child = spawn(command[0], command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] });
    this.child.stdin.on('error', () => {});
    this.child.on('exit', () => this.end());
    createInterface({ input: this.child.stdout }).on('line', (line) => {
      let m;
      try { m = JSON.parse(line); } catch { return breach('not JSON', line); }
      if (m.jsonrpc !== '2.0') return breach('not JSON-RPC', line);
      this.deliver(outward(m), line);
    });
  }
  deliver(m, line) {
    const event = `event: message\ndata: ${JSON.stringify(m)}\n\n`;
    if (m.method === undefined) {
      if (!this.posts.has(m.id)) return breach('a response nobody waits for', line);
      this.posts.get(m.id).end(event);
      return this.posts.delete(m.id);
    }
    const about = m.method === 'notifications/progress' && this.posts.get(this.tokens.get(m.params.progressToken));
    const stream = about || [...this.posts.values()].at(-1) || this.get;
    if (stream) stream.write(event);
    else this.early.push(event);
  }
  open(res) {
    res.writeHead(200, { 'content-type': 'text/event-stream', 'mcp-session-id': this.id });
    res.flushHeaders();
    return res;
  }
  take(m, res) {
    if (m.method !== undefined && m.id !== undefined) {
      this.posts.set(m.id, this.open(res));
      const token = m.params?._meta?.progressToken;
      if (token !== undefined) this.tokens.set(token, m.id);
    } else {
      res.writeHead(202).end();
    }
    this.child.stdin.write(JSON.stringify(inward(m)) + '\n');
  }
  listen(res) {
    this.get = this.open(res);
    res.on('close', () => { this.get = undefined; });
    for (const event of this.early.splice(0)) res.write(event);
  }
  end() {
    if (!sessions.delete(this.id)) return;
    for (const stream of [...this.posts.values(), this.get]) stream?.end();
    this.child.stdin.end();
  }
}

const server = createServer(async (req, res) => {
  const refuse = (status, message) => {
    res.writeHead(status, { 'content-type': 'application/json' });
    res.end(JSON.stringify({ jsonrpc: '2.0', id: null, error: { code: -32000, message } }));
  };
  const origin = req.headers.origin;
  if (!local(req.headers.host) || (origin && !local(origin.replace(/^\w+:\/\//, '')))) return refuse(403, 'not from here');
  const id = req.headers['mcp-session-id'];
  let session = sessions.get(id);
  if (id && !session) return refuse(404, 'no such session');
  let m;
  if (req.method === 'POST') {
    let body = '';
    for await (const chunk of req.setEncoding('utf8')) body += chunk;
    try { m = JSON.parse(body); } catch { return refuse(400, 'not JSON'); }
    if (!session && m.method === 'initialize') session = new Session();
  }
  if (!session) return refuse(400, 'a session is needed');
  if (req.method === 'POST') return session.take(m, res);
  if (req.method === 'GET') return session.listen(res);
  if (req.method !== 'DELETE') return refuse(405, 'POST, GET or DELETE');
  session.end();
  res.writeHead(200).end();
});
server.listen(0, '127.0.0.1', () => console.log(`http://localhost:${server.address().port}/mcp`));
process.on('SIGTERM', () => {
  for (const s of [...sessions.values()]) s.end();
  setTimeout(() => process.exit(0), 500);
});
