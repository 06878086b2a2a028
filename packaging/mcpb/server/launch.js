#!/usr/bin/env node
// The entry point of the MCP bundle. A bundle cannot say which program is for which
// processor, so this does. What the user has left empty comes as an empty text from some
// hosts and as the placeholder itself from others: such a flag is left out.
"use strict";

const run = require("./run.js");
const unpack = require("./unpack.js");

const args = [];
const given = process.argv.slice(2);
for (let i = 0; i < given.length; i++) {
  const value = given[i + 1];
  if (["--config", "--state-dir", "--upstream"].includes(given[i]) && value !== undefined) {
    i++;
    if (value !== "" && value !== "server=" && !value.includes("${user_config.")) args.push(given[i - 1], value);
  } else {
    args.push(given[i]);
  }
}

let program;
try {
  program = unpack(process.platform, process.arch);
} catch (err) {
  console.error(`haldir: ${err.message}`);
  process.exit(1);
}
run(program, args);
