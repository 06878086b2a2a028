#!/usr/bin/env node
// Runs the haldir of this system, which npm has installed beside this package.
"use strict";

const run = require("./run.js");

const name = `@haldir-mcp/haldir-${process.platform}-${process.arch}`;
let program;
try {
  program = require.resolve(`${name}/bin/haldir${process.platform === "win32" ? ".exe" : ""}`);
} catch {
  console.error(`haldir: the package ${name} is not installed`);
  console.error("haldir: hint: install haldir without --omit=optional, on the system that it is to run on; " +
    "it is for linux, darwin and win32 on x64 and arm64");
  process.exit(1);
}
run(program, process.argv.slice(2));
