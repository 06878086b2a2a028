// Stands for a program: its input and output are this process's own, what signals come are
// passed on, and it ends as the program has ended.
"use strict";

const { spawn } = require("node:child_process");
const { constants } = require("node:os");

module.exports = function run(program, args) {
  const child = spawn(program, args, { stdio: "inherit", windowsHide: true });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    // The listener also keeps this process alive until the program has tidied up. A
    // terminal sends Ctrl-C to both: the program then gets it twice, which is harmless.
    process.on(signal, () => child.kill(signal));
  }
  child.on("error", (err) => {
    console.error(`haldir: cannot start ${program}: ${err.message}`);
    process.exit(1);
  });
  child.on("exit", (code, signal) => {
    if (signal === null) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
    // Where a signal cannot end this process, the shell's number for it does.
    setTimeout(() => process.exit(128 + (constants.signals[signal] ?? 0)), 100);
  });
};
