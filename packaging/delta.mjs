// Says how a program differs from another of the same source for the same processor. Most
// of the two is the same code at other addresses: along a stretch of it few bytes differ,
// and those again and again by the same amount. So a stretch is said as differences, mostly
// zero, which a packer makes little of. mcpb/server/unpack.js has the opposite, and the form.

const anchor = 12; // bytes that must be equal for a stretch to begin
const tries = 8; // places with the same hash that are looked at
const patience = 32; // how far a stretch may get worse before it is given up
const bits = 22; // of the hash

const hash = (b, i) => (Math.imul(b.readInt32LE(i), 0x9e3779b1) ^ Math.imul(b.readInt32LE(i + 4), 0x85ebca6b)) >>> (32 - bits);

// differ returns the function that makes the patch from base to a program.
export function differ(base) {
  const first = new Int32Array(1 << bits).fill(-1);
  const next = new Int32Array(base.length);
  for (let i = base.length - 8; i >= 0; i--) {
    const h = hash(base, i);
    next[i] = first[h];
    first[h] = i;
  }

  // find returns where in base the longest stretch begins that equals the program's at an
  // offset, or -1.
  function find(program, at) {
    let best = -1;
    let length = anchor - 1;
    for (let i = first[hash(program, at)], n = 0; i >= 0 && n < tries; i = next[i], n++) {
      let l = 0;
      while (l < 1024 && at + l < program.length && i + l < base.length && program[at + l] === base[i + l]) l++;
      if (l > length) [best, length] = [i, l];
    }
    return best;
  }

  // along returns how far program and base go along with each other from two offsets, one
  // way (1) or the other (-1): to where most bytes more were equal than not.
  function along(program, at, from, way, limit) {
    let [score, best, length] = [0, 0, 0];
    const room = way > 0 ? Math.min(program.length - at, base.length - from) : Math.min(at, from) + 1;
    for (let n = 0; n < Math.min(limit, room) && score >= best - patience; n++) {
      score += program[at + n * way] === base[from + n * way] ? 1 : -1;
      if (score >= best) [best, length] = [score, n + 1];
    }
    return length;
  }

  return function patch(program) {
    const steps = [];
    const literals = [];
    const differences = Buffer.alloc(program.length);
    let [at, from, used] = [0, 0, 0];
    while (at < program.length) {
      const same = along(program, at, from, 1, program.length);
      for (const end = at + same; at < end; ) differences[used++] = program[at++] - base[from++];
      let [stretch, start] = [-1, at];
      while (start + 8 <= program.length && (stretch = find(program, start)) < 0) start++;
      if (stretch < 0) start = program.length;
      const back = stretch < 0 ? 0 : along(program, start - 1, stretch - 1, -1, start - at);
      start -= back;
      steps.push([same, start - at, stretch < 0 ? 0 : stretch - back - from]);
      literals.push(program.subarray(at, start));
      [at, from] = [start, stretch - back];
    }
    const head = Buffer.alloc(4 + 12 * steps.length);
    head.writeInt32LE(steps.length);
    for (const [k, i] of [0, 1, 2].flatMap((k) => steps.map((_, i) => [k, i]))) {
      head.writeInt32LE(steps[i][k], 4 * (1 + k * steps.length + i));
    }
    return Buffer.concat([head, differences.subarray(0, used), ...literals]);
  };
}
