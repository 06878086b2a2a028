// score.mjs SUITE ERA OTHER DIR: compares the results in DIR with what scores.txt
// says that SUITE, server or client, must reach in ERA, legacy or modern, when the
// other side of haldir is of the era OTHER.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const [suite, era, other, dir] = process.argv.slice(2);
const runs = new Map(); // by scenario; the suite names a directory [server-]SCENARIO-TIME
for (const found of readdirSync(dir, { recursive: true })) { // a scenario's name may have a slash
  if (!found.endsWith('/checks.json')) continue;
  const run = found.slice(0, -'/checks.json'.length);
  runs.set(run.replace(/-\d{4}-\d\d-\d\dT.*$/, '').slice(suite === 'server' ? 'server-'.length : 0), run);
}
let passed = 0, well = 0, scenarios = 0;
const unscored = [], clean = [];
for (const line of readFileSync(new URL('scores.txt', import.meta.url), 'utf8').split('\n')) {
  const [of, when, scenario, legacy, modern] = line.split(/\s+/);
  if (of !== suite || when !== era) continue;
  const least = other === 'legacy' ? legacy : modern;
  const run = runs.get(scenario);
  runs.delete(scenario);
  const checks = run ? JSON.parse(readFileSync(join(dir, run, 'checks.json'))) : [];
  const good = checks.filter((c) => c.status === 'SUCCESS').length;
  const failures = checks.filter((c) => c.status === 'FAILURE' || c.status === 'WARNING');
  if (least === '-') {
    unscored.push(scenario);
    if (good && failures.length === 0) clean.push(scenario);
    continue;
  }
  scenarios++;
  passed += good;
  if (run && good >= +least && failures.length === 0) {
    well++;
    continue;
  }
  console.log(`${scenario}: ${run ? `${good} checks passed, ${least} are expected` : 'did not run'}`);
  for (const f of failures) console.log(`  ${f.status} ${f.id}: ${f.errorMessage ?? f.description}`);
}
for (const scenario of runs.keys()) console.log(`${scenario}: not in scores.txt`);
console.log(`${well} of ${scenarios} scenarios clean, ${passed} checks passed`);
if (unscored.length) console.log(`not scored: ${unscored.join(' ')}`);
if (clean.length) console.log(`  of these clean, this time: ${clean.join(' ')}`);
process.exit(scenarios && well === scenarios && runs.size === 0 ? 0 : 1);
