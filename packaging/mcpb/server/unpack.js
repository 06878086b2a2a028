// The six programs differ by little, so they come packed together by processor (see
// programs.json), which makes the bundle a third of the size. At its first start the one
// for this system is taken out, beside this file, or in the user's cache where the bundle
// may not be written to.
"use strict";

const { createHash } = require("node:crypto");
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
  // The name has the hash, so that another version's is never taken for this one.
  const name = `haldir-${entry.sha256.slice(0, 16)}${platform === "win32" ? ".exe" : ""}`;
  const places = [path.join(__dirname, "bin"), path.join(cache(platform), "haldir", "bundle")];
  for (const dir of places) {
    const file = path.join(dir, name);
    if (whole(file, entry)) return file;
  }
  const program = take(entry);
  let failure;
  for (const dir of places) {
    const file = path.join(dir, name);
    try {
      write(file, program);
      return file;
    } catch (err) {
      if (whole(file, entry)) return file; // another start was faster
      failure = err;
    }
  }
  throw new Error(`cannot unpack the program: ${failure.message}`);
};

// whole tells whether a file was written to its end. It comes to its name by a rename, so
// its length says so.
function whole(file, entry) {
  try {
    return fs.statSync(file).size === entry.length;
  } catch {
    return false;
  }
}

function take(entry) {
  const packed = fs.readFileSync(path.join(__dirname, entry.pack));
  try {
    const all = zlib.brotliDecompressSync(packed, { params: { [zlib.constants.BROTLI_DECODER_PARAM_LARGE_WINDOW]: 1 } });
    const program = all.subarray(entry.offset, entry.offset + entry.length);
    if (createHash("sha256").update(program).digest("hex") === entry.sha256) return program;
  } catch {
    // it is no such stream any more
  }
  throw new Error(`${entry.pack} is damaged; install the bundle again`);
}

function write(file, program) {
  fs.mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
  const unfinished = `${file}.${process.pid}.tmp`;
  try {
    fs.writeFileSync(unfinished, program, { mode: 0o755, flag: "wx", flush: true });
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
