// The six programs would make the bundle too large. It has two of them whole, one for each
// processor (base.br), and of each of the others only how it differs (see ../../delta.mjs
// in the repository, and programs.json). At its first start the program for this system is
// put together, beside this file, or in the user's cache where the bundle may not be
// written to. Every start compares it with its hash before it runs.
"use strict";

const { createHash, randomBytes } = require("node:crypto");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const zlib = require("node:zlib");

// unpack returns the path of the program for a system.
module.exports = function unpack(platform, arch) {
  const index = JSON.parse(fs.readFileSync(path.join(__dirname, "programs.json"), "utf8"));
  const entry = index[`${platform}-${arch}`];
  if (entry === undefined) {
    throw new Error(`this bundle has no program for ${platform}-${arch}, only for ${Object.keys(index).join(", ")}`);
  }
  // The name has the hash, so that starts of two versions leave each other's alone.
  const name = `haldir-${entry.sha256.slice(0, 16)}${platform === "win32" ? ".exe" : ""}`;
  const files = [path.join(__dirname, "bin", name), path.join(cache(platform), "haldir", "bundle", name)];
  for (const file of files) if (whyNot(file, entry) === undefined) return file;
  const program = take(entry);
  const failures = [];
  for (const file of files) {
    let failure;
    try {
      write(file, program);
    } catch (err) {
      failure = err.message; // and yet another start may have been faster
    }
    const reason = whyNot(file, entry);
    if (reason === undefined) return file;
    failures.push(failure ?? reason);
  }
  throw new Error(`cannot unpack the program: ${failures.join("; ")}`);
};

// whyNot says why a file must not be run, if so: it is not the program, byte for byte, or
// somebody else could still change it after this look.
function whyNot(file, entry) {
  try {
    const stat = fs.lstatSync(file);
    if (!stat.isFile() || stat.size !== entry.length || hash(file) !== entry.sha256) return `${file} is not the program`;
    for (let at = fs.realpathSync(file); ; at = path.dirname(at)) {
      if (othersMayWrite(fs.statSync(at))) return `other users may write to ${at}`;
      if (at === path.dirname(at)) return undefined;
    }
  } catch (err) {
    return err.message;
  }
}

// othersMayWrite is for users other than this one and root. Where a directory is sticky,
// they cannot replace what is not theirs. Windows keeps both places to their user.
function othersMayWrite(stat) {
  if (process.getuid === undefined) return false;
  const open = (stat.mode & 0o002) !== 0 && !(stat.isDirectory() && (stat.mode & 0o1000) !== 0);
  return open || ![0, process.getuid()].includes(stat.uid);
}

function hash(file) {
  const sum = createHash("sha256");
  const part = Buffer.allocUnsafe(1 << 20);
  const from = fs.openSync(file, "r");
  try {
    for (let n; (n = fs.readSync(from, part)) > 0; ) sum.update(part.subarray(0, n));
  } finally {
    fs.closeSync(from);
  }
  return sum.digest("hex");
}

// take returns the bytes of a program.
function take({ offset, baseLength, patch, length, sha256 }) {
  try {
    const base = unpacked("base.br").subarray(offset, offset + baseLength);
    const program = patch === undefined ? base : patched(base, unpacked(patch), length);
    if (createHash("sha256").update(program).digest("hex") === sha256) return program;
  } catch {
    // it is no such stream any more
  }
  throw new Error("the bundle is damaged; install it again");
}

function unpacked(name) {
  const params = { [zlib.constants.BROTLI_DECODER_PARAM_LARGE_WINDOW]: 1 };
  return zlib.brotliDecompressSync(fs.readFileSync(path.join(__dirname, name)), { params });
}

// patched makes a program from another. A patch has the number of its steps, then three
// numbers of each, by column: how many bytes differ from those of the other by what follows,
// how many follow as they are, and how far to go on in the other.
function patched(base, patch, length) {
  const program = Buffer.alloc(length);
  const steps = patch.readInt32LE(0);
  const column = (k, i) => patch.readInt32LE(4 * (1 + k * steps + i));
  let differences = 4 * (1 + 3 * steps);
  let literals = differences;
  for (let i = 0; i < steps; i++) literals += column(0, i);
  for (let i = 0, at = 0, from = 0; i < steps; i++) {
    for (const end = at + column(0, i); at < end; ) program[at++] = base[from++] + patch[differences++];
    const n = column(1, i);
    patch.copy(program, at, literals, literals + n);
    at += n;
    literals += n;
    from += column(2, i);
  }
  return program;
}

// write puts a file to its name by a rename, so that no start finds half of it.
function write(file, program) {
  fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o755 });
  const unfinished = `${file}.${randomBytes(8).toString("hex")}.tmp`;
  try {
    fs.writeFileSync(unfinished, program, { mode: 0o755, flag: "wx" });
    fs.renameSync(unfinished, file);
  } catch (err) {
    fs.rmSync(unfinished, { force: true });
    throw err;
  }
}

function cache(platform) {
  if (platform === "win32") return process.env.LOCALAPPDATA || path.join(os.homedir(), "AppData", "Local");
  if (platform === "darwin") return path.join(os.homedir(), "Library", "Caches");
  return process.env.XDG_CACHE_HOME || path.join(os.homedir(), ".cache");
}
