// A second verifier of haldir's audit, written from docs/audit-format.md alone:
//
//   node verify.mjs EXPORT.jsonl [MANIFEST.json [checkpoints.log PUBLIC-KEY]]
//
// Without a manifest it may also begin where a record tells that all before were
// pruned, as what was shipped does. It prints "ok …" and exits with 0, or "bad SEQ: …", the first record that is
// not as it was written, and exits with 1.
import { createHash, createPublicKey, verify } from 'node:crypto'
import { readFileSync } from 'node:fs'

class Bad extends Error {
  constructor(seq, what) {
    super(what)
    this.seq = seq
  }
}

const sha256 = (...parts) => {
  const h = createHash('sha256')
  for (const p of parts) h.update(p)
  return h.digest()
}
const leafHash = (bytes) => sha256(Buffer.of(0), bytes)
const nodeHash = (left, right) => sha256(Buffer.of(1), left, right)

// JSON.parse rounds numbers above 2^53 and takes the last of two equal keys, so
// a line is read by hand: a flat object of strings, booleans and numbers.
function parseLine(line) {
  const token = /\s*([{}:,]|"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"|-?\d+(?:\.\d+)?|true|false)/y
  const next = () => {
    const m = token.exec(line)
    if (!m) throw new Error('not a line of JSON')
    return m[1]
  }
  const expect = (want) => {
    if (next() !== want) throw new Error(`no ${want} where one is needed`)
  }
  const fields = new Map()
  expect('{')
  for (;;) {
    const name = next()
    if (name[0] !== '"') throw new Error('no name of a field')
    expect(':')
    const raw = next()
    if ('{}:,'.includes(raw)) throw new Error('no value of a field')
    const key = JSON.parse(name)
    if (fields.has(key)) throw new Error(`${key} twice`)
    fields.set(key, raw)
    const end = next()
    if (end === '}') break
    if (end !== ',') throw new Error('no comma')
  }
  if (line.slice(token.lastIndex).trim() !== '') throw new Error('something after the object')
  return fields
}

const kinds = { attempt: 1n, outcome: 2n, governance: 3n, session: 4n, config: 5n, ledger: 6n, pins: 7n, approval: 8n, key: 9n }

// The fields in the order in which they are hashed, with what makes bytes of each.
const fields = [
  ['seq', number], ['prev_hash', hash], ['timestamp', time], ['kind', kind], ['status', text], ['ref', number], ['call_id', text],
  ['session_id', text], ['agent_id', text], ['client', text], ['upstream', text], ['tool', text], ['flagged', flag], ['flag_reason', text],
  ['policy', text], ['rule', text], ['also', text], ['cost_usd', money], ['duration_ms', number], ['arguments', text],
  ['arguments_sha256', optionalHash], ['arguments_size', number], ['result_sha256', optionalHash], ['approval', text],
  ['config_sha256', optionalHash], ['thread_session', number], ['thread_agent', number], ['thread_upstream', number],
  ['thread_tool', number], ['thread_status', number], ['thread_flagged', number],
]

function string(raw) {
  if (raw[0] !== '"') throw new Error('no text')
  return JSON.parse(raw)
}

function bytesOf(n) {
  if (n < 0n || n >= 1n << 64n) throw new Error('a number out of range')
  let hex = n === 0n ? '' : n.toString(16)
  if (hex.length % 2) hex = '0' + hex
  return Buffer.from(hex, 'hex')
}

function number(raw) {
  if (!/^(0|[1-9]\d*)$/.test(raw)) throw new Error('no number')
  return bytesOf(BigInt(raw))
}

function text(raw) {
  const s = string(raw)
  if (s.startsWith('base64:')) return base64(s.slice(7))
  return Buffer.from(s, 'utf8')
}

function base64(s) {
  const b = Buffer.from(s, 'base64')
  if (b.toString('base64') !== s) throw new Error('no base64')
  return b
}

function hash(raw) {
  const s = string(raw)
  if (!/^[0-9a-f]{64}$/.test(s)) throw new Error('no hash')
  return Buffer.from(s, 'hex')
}

function optionalHash(raw) {
  return string(raw) === '' ? Buffer.alloc(0) : hash(raw)
}

function nanos(raw) {
  const m = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z$/.exec(string(raw))
  const ms = m && Date.parse(m[1] + 'Z')
  if (!m || Number.isNaN(ms)) throw new Error('no time')
  return BigInt(ms) * 1_000_000n + BigInt((m[2] ?? '').padEnd(9, '0'))
}

function time(raw) {
  return bytesOf(nanos(raw))
}

function kind(raw) {
  const n = kinds[string(raw)]
  if (!n) throw new Error('an unknown kind')
  return bytesOf(n)
}

function flag(raw) {
  if (raw !== 'true' && raw !== 'false') throw new Error('neither true nor false')
  return bytesOf(raw === 'true' ? 1n : 0n)
}

function money(raw) {
  const m = /^(0|[1-9]\d*)(?:\.(\d{1,6}))?$/.exec(raw)
  if (!m) throw new Error('no amount')
  return bytesOf(BigInt(m[1]) * 1_000_000n + BigInt((m[2] ?? '').padEnd(6, '0')))
}

function leb128(n) {
  const out = []
  for (; n >= 128; n >>>= 7) out.push((n & 127) | 128)
  return Buffer.from([...out, n])
}

// record makes of a line what is checked of it.
function record(line) {
  const all = parseLine(line)
  const parts = [Buffer.of(1)]
  for (const [name, encode] of fields) {
    const raw = all.get(name)
    if (raw === undefined) throw new Error(`${name} is missing`)
    let field
    try {
      field = encode(raw)
    } catch (e) {
      throw new Error(`${name}: ${e.message}`)
    }
    parts.push(leb128(field.length), field)
  }
  const stated = hash(all.get('hash') ?? '""')
  if (all.size !== fields.length + 1) throw new Error('an unknown field')
  return {
    seq: BigInt(all.get('seq')),
    prev: hash(all.get('prev_hash')),
    time: nanos(all.get('timestamp')),
    pruned: string(all.get('kind')) === 'ledger' && string(all.get('status')) === 'pruned' ? pruning(all) : undefined,
    mayTurnBack: string(all.get('kind')) === 'ledger' && string(all.get('status')) === 'clock_reset',
    hash: leafHash(Buffer.concat(parts)),
    stated,
  }
}

// pruning is what a record tells of records that are not kept any more.
function pruning(all) {
  const told = JSON.parse(text(all.get('arguments')).toString('utf8'))
  const n = (v) => {
    if (!Number.isSafeInteger(v) || v < 1) throw new Error('it does not say what was pruned')
    return BigInt(v)
  }
  const out = { from: n(told.from), to: n(told.to), root: Buffer.from(String(told.root), 'hex'), head: Buffer.from(String(told.head), 'hex') }
  if (out.from > out.to || out.to >= BigInt(all.get('seq'))) throw new Error('it does not say what was pruned')
  return out
}

// Tree keeps the roots of the complete subtrees, the largest first.
class Tree {
  size = 0n
  peaks = []
  add(leaf) {
    for (let n = this.size; n & 1n; n >>= 1n) leaf = nodeHash(this.peaks.pop(), leaf)
    this.peaks.push(leaf)
    this.size++
  }
  copy() {
    return Object.assign(new Tree(), { size: this.size, peaks: [...this.peaks] })
  }
  root() {
    return this.peaks.reduceRight((right, left) => nodeHash(left, right))
  }
}

// checkpoints reads a log; every line is signed with the key.
function checkpoints(log, publicKey) {
  const m = /^(.+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]+)$/.exec(publicKey)
  const key = m && base64(m[3])
  if (!key || key.length !== 33 || key[0] !== 1) throw new Bad(0, 'the public key is none')
  const id = sha256(m[1], '\n', key).subarray(0, 4)
  if (id.toString('hex') !== m[2]) throw new Bad(0, 'the public key is none: its id is wrong')
  const ed25519 = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: key.subarray(1).toString('base64url') }, format: 'jwk' })
  const list = []
  const lines = log.split('\n')
  lines.pop() // what follows the last line break was cut short
  for (const [i, line] of lines.entries()) {
    const bad = (what) => new Bad(0, `line ${i + 1} of the checkpoint log: ${what}`)
    let note
    try {
      note = JSON.parse(line).note
    } catch {
      throw bad('no JSON')
    }
    const split = String(note).lastIndexOf('\n\n')
    const body = String(note).slice(0, split + 1)
    const signature = new RegExp(`^— (\\S+) (\\S+)\\n$`).exec(String(note).slice(split + 2))
    const decoded = (text) => {
      try {
        return base64(text)
      } catch {
        throw bad('no base64')
      }
    }
    const raw = signature && decoded(signature[2])
    if (split < 0 || !raw || signature[1] !== m[1] || !raw.subarray(0, 4).equals(id)) throw bad('no note of this ledger')
    if (!verify(null, Buffer.from(body), ed25519, raw.subarray(4))) throw bad('the signature is wrong')
    const c = /^(.+)\n(0|[1-9]\d*)\n(\S+)\nhead ([0-9a-f]{64})\ntime (\S+)\n$/.exec(body)
    if (!c || c[1] !== m[1]) throw bad('no checkpoint')
    const size = BigInt(c[2])
    if (list.length > 0 && size < list.at(-1).size) throw bad('it is older than the line before')
    list.push({ size, root: decoded(c[3]), head: Buffer.from(c[4], 'hex'), time: c[5] })
  }
  return list
}

// beginning is the number of the first record.
function beginning(line) {
  try {
    return BigInt(parseLine(line).get('seq'))
  } catch {
    return 1n
  }
}

function check(file, manifestFile, logFile, publicKey) {
  const content = readFileSync(file)
  const manifest = manifestFile ? JSON.parse(readFileSync(manifestFile, 'utf8')) : undefined
  const signed = logFile ? checkpoints(readFileSync(logFile, 'utf8'), publicKey) : []
  const lines = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(content).split('\n')
  const cutShort = lines.pop() !== ''

  const first = manifest ? BigInt(manifest.first_seq || 1) : beginning(lines[0])
  const tree = new Tree()
  const leaves = []
  const told = [] // of pruning, by the records
  let agreed = 0n, matched = 0, forked
  let before = first === 1n ? Buffer.alloc(32) : undefined // what the first record follows
  const gone = manifest?.pruned && BigInt(manifest.pruned.size) === first - 1n ? manifest.pruned : undefined
  if (gone) {
    tree.size = BigInt(gone.size)
    tree.peaks = gone.peaks.map((h) => Buffer.from(h, 'hex'))
    before = Buffer.from(gone.head, 'hex')
    if (tree.peaks.length !== tree.size.toString(2).replaceAll('0', '').length) throw new Bad(0, 'what is said of the pruned records does not fit together')
    // The records that are gone must have been signed, to the last.
    const over = signed.filter((c) => c.size === tree.size)
    if (logFile && (over.length === 0 || !over.every((c) => c.root.equals(tree.root()) && c.head.equals(before)))) throw new Bad(0, 'what is said of the pruned records was never signed')
    while (signed.length > 0 && signed[0].size <= tree.size) if (signed.shift().size === tree.size) matched++
    agreed = tree.size
  }
  const again = tree.copy() // for what went later
  const whole = before !== undefined // else the tree cannot be made
  const compare = (seq, hash) => {
    for (; whole && signed.length > 0 && signed[0].size <= seq; signed.shift()) {
      if (signed[0].size < seq || forked) continue
      if (signed[0].root.equals(tree.root()) && signed[0].head.equals(hash)) {
        agreed = seq
        matched++
      } else {
        forked = { seq, bad: new Bad(agreed + 1n, `the records from there to ${seq} are not those that were signed`) }
      }
    }
  }
  let last, follows // what the first record says that it follows
  try {
    const parse = (i) => {
      if (i >= lines.length) return undefined
      try {
        return record(lines[i])
      } catch (e) {
        return { bad: e.message }
      }
    }
    for (let i = 0, now = parse(0), next; i < lines.length; i++, now = next) {
      next = parse(i + 1)
      const want = first + BigInt(i)
      if (now.bad) throw new Bad(want, now.bad)
      if (now.seq > want) throw new Bad(want, `record ${now.seq} is in its place`)
      if (now.seq < want) throw new Bad(now.seq, 'there is another of that number')
      if (!now.hash.equals(now.stated)) throw new Bad(want, 'its hash is not that of its contents')
      if (last ? !now.prev.equals(last.hash) : whole && !now.prev.equals(before)) {
        // Which of the two was changed? Who comes after this one knows its hash.
        const known = next ? next.prev?.equals(now.hash) : manifest?.head_hash === now.hash.toString('hex')
        throw new Bad(last && known ? want - 1n : want, 'it and its neighbour are not linked')
      }
      if (last && now.time < last.time && !now.mayTurnBack) throw new Bad(want, 'it is older than the one before')
      if (now.pruned) {
        if (told.length > 0 && now.pruned.from !== told.at(-1).to + 1n) throw new Bad(want, 'it does not go on where pruning was before')
        told.push({ ...now.pruned, seq: want })
      }
      tree.add(now.hash)
      leaves.push(now.hash)
      follows ??= now.prev
      last = now
      compare(want, now.hash)
    }
    const end = first + BigInt(lines.length)
    if (cutShort) throw new Bad(end, 'it is cut short')
    if (manifest && BigInt(manifest.count) > BigInt(lines.length)) throw new Bad(end, `the end is missing, up to ${manifest.last_seq}`)
    if (manifest && BigInt(manifest.count) < BigInt(lines.length)) throw new Bad(BigInt(manifest.last_seq) + 1n, 'it was added at the end')
    if (manifest && last && last.hash.toString('hex') !== manifest.head_hash) throw new Bad(end - 1n, 'its hash is not that of the manifest')
    // What goes later may be here all the same. What is not here must have gone.
    const most = told.at(-1)?.to ?? 0n
    if ((whole || !manifest) && most < first - 1n) throw new Bad(gone ? 0 : 1, `it begins at ${first}, and the records say that ${most} were pruned`)
    for (const t of told) {
      if (t.to < first - 1n) continue
      const at = Number(t.to - first)
      while (whole && again.size < t.to) again.add(leaves[Number(again.size - first + 1n)])
      if (t.head.equals(leaves[at] ?? follows) && (!whole || t.root.equals(again.root()))) continue
      throw new Bad(at < 0 ? 0 : t.seq, `the records up to ${t.to} are not those that went, as record ${t.seq} tells`)
    }
    if (whole && !forked && signed.length > 0) throw new Bad(end, `${signed.at(-1).size} records were signed`)
  } catch (e) {
    // Signatures tell that something is wrong up to a record, the chain may tell what.
    throw forked && !(e.seq <= forked.seq) ? forked.bad : e
  }
  if (forked) throw forked.bad
  if (manifest && sha256(content).toString('hex') !== manifest.sha256) throw new Bad(0, 'the file is not that of the manifest')
  return `ok ${lines.length} records, ${matched} checkpoints, root ${tree.size ? tree.root().toString('base64') : ''}`
}

function judge(args) {
  try {
    return check(...args)
  } catch (e) {
    if (e instanceof Bad) return `bad ${e.seq}: ${e.message}`
    throw e
  }
}

// With --all, each line of the standard input is the arguments of one, in JSON.
if (process.argv[2] === '--all') {
  for (const line of readFileSync(0, 'utf8').split('\n')) if (line) console.log(judge(JSON.parse(line)))
} else {
  const verdict = judge(process.argv.slice(2))
  console.log(verdict)
  if (!verdict.startsWith('ok')) process.exitCode = 1
}
