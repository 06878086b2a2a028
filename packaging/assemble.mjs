// Makes what goreleaser does not know of from what it has built: npm's packages, the MCP
// bundle, the plugin of Claude Code, the registry's server.json and the context of the
// container image. Run by packaging/build, with npm's and mcpb's programs on its PATH.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import zlib from "node:zlib";

import { differ } from "./delta.mjs";

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.dirname(here);
const dist = path.join(root, "dist");

const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const run = (program, args, options) => execFileSync(program, args, { stdio: ["ignore", "ignore", "inherit"], ...options });

function put(file, bytes, mode = 0o644) {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, bytes);
  fs.chmodSync(file, mode);
}

const putJSON = (file, value) => put(file, JSON.stringify(value, null, 2) + "\n");
const copy = (from, to, mode) => put(to, fs.readFileSync(path.join(here, from)), mode);

const { version } = read(path.join(dist, "metadata.json"));
const stamp = new Date(Number(process.env.SOURCE_DATE_EPOCH) * 1000);
if (Number.isNaN(stamp.getTime())) throw new Error("SOURCE_DATE_EPOCH is not set; the script packaging/build does that");

const platforms = read(path.join(dist, "artifacts.json"))
  .filter((a) => a.type === "Binary")
  .map((a) => ({
    file: path.join(root, a.path),
    goos: a.goos,
    goarch: a.goarch,
    os: { windows: "win32" }[a.goos] ?? a.goos,
    cpu: { amd64: "x64" }[a.goarch] ?? a.goarch,
    exe: a.goos === "windows" ? ".exe" : "",
  }))
  .sort((a, b) => (a.cpu + a.os < b.cpu + b.os ? -1 : 1));
if (platforms.length !== 6) throw new Error(`dist has the programs of ${platforms.length} systems, not of 6`);

// npm: one package a system, of which npm installs the one that fits, and the launcher.
function npm() {
  const out = path.join(dist, "npm");
  const main = read(path.join(here, "npm/haldir/package.json"));
  const pack = (dir) => run("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination", out], { cwd: dir });
  fs.mkdirSync(out, { recursive: true });
  for (const p of platforms) {
    const name = `@haldir-mcp/haldir-${p.os}-${p.cpu}`;
    const dir = path.join(out, "packages", `haldir-${p.os}-${p.cpu}`);
    putJSON(path.join(dir, "package.json"), {
      name, version,
      description: `The program of haldir for ${p.os} on ${p.cpu}; install the package haldir`,
      homepage: main.homepage, repository: main.repository, license: main.license,
      os: [p.os], cpu: [p.cpu], files: ["bin"], preferUnplugged: true,
    });
    put(path.join(dir, "README.md"), `# ${name}\n\nThe program of [haldir](https://www.npmjs.com/package/haldir) for ${p.os} on ${p.cpu}.\n`);
    copy("../LICENSE", path.join(dir, "LICENSE"));
    put(path.join(dir, "bin", `haldir${p.exe}`), fs.readFileSync(p.file), 0o755);
    main.optionalDependencies[name] = version; // exactly: the two are one program
    pack(dir);
  }
  const dir = path.join(out, "packages", "haldir");
  putJSON(path.join(dir, "package.json"), { ...main, version });
  copy("npm/haldir/README.md", path.join(dir, "README.md"));
  copy("../LICENSE", path.join(dir, "LICENSE"));
  copy("npm/haldir/bin/haldir.js", path.join(dir, "bin/haldir.js"), 0o755);
  copy("npm/haldir/bin/run.js", path.join(dir, "bin/run.js"));
  pack(dir);
}

// The bundle. It has the programs of one system whole, and the others as what differs in
// them from the one for the same processor.
async function bundle() {
  const dir = path.join(dist, "mcpb");
  const index = {};
  const bases = platforms.filter((p) => p.os === "linux").map((p) => ({ ...p, bytes: fs.readFileSync(p.file) }));
  const base = packed(Buffer.concat(bases.map((b) => b.bytes))); // meanwhile
  let offset = 0;
  for (const { cpu, bytes: whole } of bases) {
    const patch = differ(whole);
    for (const p of platforms.filter((p) => p.cpu === cpu)) {
      const bytes = fs.readFileSync(p.file);
      const system = `${p.os}-${cpu}`;
      index[system] = { offset, baseLength: whole.length, length: bytes.length, sha256: sha256(bytes) };
      if (p.os === "linux") continue;
      index[system].patch = `${system}.br`;
      put(path.join(dir, "server", index[system].patch), await packed(patch(bytes)));
    }
    offset += whole.length;
  }
  put(path.join(dir, "server/base.br"), await base);
  putJSON(path.join(dir, "server/programs.json"), index);
  putJSON(path.join(dir, "manifest.json"), { ...read(path.join(here, "mcpb/manifest.json")), version });
  copy("mcpb/icon.png", path.join(dir, "icon.png"));
  copy("mcpb/server/launch.js", path.join(dir, "server/launch.js"), 0o755);
  copy("mcpb/server/unpack.js", path.join(dir, "server/unpack.js"));
  copy("npm/haldir/bin/run.js", path.join(dir, "server/run.js"));
  copy("../LICENSE", path.join(dir, "LICENSE"));
  const file = path.join(dist, `haldir-${version}.mcpb`);
  run("mcpb", ["validate", path.join(dir, "manifest.json")]);
  run("mcpb", ["pack", dir, file]);
  fs.writeFileSync(file, dated(fs.readFileSync(file)));
  return file;
}

// packed is what node of every version unpacks. The window reaches over all of it: also
// programs for two processors have much in common.
function packed(bytes) {
  const { BROTLI_PARAM_QUALITY, BROTLI_PARAM_LARGE_WINDOW, BROTLI_PARAM_LGWIN, BROTLI_PARAM_SIZE_HINT } = zlib.constants;
  return promisify(zlib.brotliCompress)(bytes, {
    params: { [BROTLI_PARAM_QUALITY]: 9, [BROTLI_PARAM_LARGE_WINDOW]: 1, [BROTLI_PARAM_LGWIN]: 26, [BROTLI_PARAM_SIZE_HINT]: bytes.length },
  });
}

// dated gives every entry of a zip archive the time of the commit: mcpb writes the time of
// day. Offsets are those of APPNOTE.TXT 4.3.
function dated(zip) {
  const time = (stamp.getUTCHours() << 11) | (stamp.getUTCMinutes() << 5) | (stamp.getUTCSeconds() >> 1);
  const day = ((stamp.getUTCFullYear() - 1980) << 9) | ((stamp.getUTCMonth() + 1) << 5) | stamp.getUTCDate();
  const end = zip.lastIndexOf(Buffer.from("PK\x05\x06"));
  let at = zip.readUInt32LE(end + 16);
  for (let n = zip.readUInt16LE(end + 10); n > 0; n--) {
    if (zip.readUInt32LE(at) !== 0x02014b50) throw new Error("mcpb wrote no zip archive that this can read");
    const local = zip.readUInt32LE(at + 42);
    for (const field of [at + 12, local + 10]) {
      zip.writeUInt16LE(time, field);
      zip.writeUInt16LE(day, field + 2);
    }
    at += 46 + zip.readUInt16LE(at + 28) + zip.readUInt16LE(at + 30) + zip.readUInt16LE(at + 32);
  }
  return zip;
}

function plugin(mcpb) {
  const dir = path.join(dist, "plugin");
  putJSON(path.join(dir, ".claude-plugin/plugin.json"), { ...read(path.join(here, "plugin/.claude-plugin/plugin.json")), version });
  copy("plugin/README.md", path.join(dir, "README.md"));
  copy("mcpb/icon.png", path.join(dir, "icon.png"));
  copy("../LICENSE", path.join(dir, "LICENSE"));
  put(path.join(dir, "haldir.mcpb"), fs.readFileSync(mcpb));
}

function registry(mcpb) {
  const server = read(path.join(here, "registry/server.json"));
  const stamped = JSON.parse(JSON.stringify(server).replaceAll("0.0.0", version));
  stamped.packages.find((p) => p.registryType === "mcpb").fileSha256 = sha256(fs.readFileSync(mcpb));
  putJSON(path.join(dist, "server.json"), stamped);
}

function image() {
  const dir = path.join(dist, "image");
  for (const p of platforms.filter((p) => p.goos === "linux")) {
    put(path.join(dir, p.goos, p.goarch, "haldir"), fs.readFileSync(p.file), 0o755);
  }
  copy("../LICENSE", path.join(dir, "LICENSE"));
  fs.mkdirSync(path.join(dir, "state"), { recursive: true });
}

// checksums adds what was made here to the checksums of the release.
function checksums(...files) {
  const list = path.join(dist, "checksums.txt");
  const more = files.map((f) => `${sha256(fs.readFileSync(f))}  ${path.basename(f)}\n`);
  fs.appendFileSync(list, more.join(""));
}

npm();
const mcpb = await bundle();
plugin(mcpb);
registry(mcpb);
image();
const tarballs = fs.readdirSync(path.join(dist, "npm")).filter((f) => f.endsWith(".tgz")).sort().map((f) => path.join(dist, "npm", f));
checksums(mcpb, path.join(dist, "server.json"), ...tarballs);
console.log(`haldir ${version} of ${stamp.toISOString()}: ${path.basename(mcpb)} has ${(fs.statSync(mcpb).size / 1e6).toFixed(1)} MB`);
