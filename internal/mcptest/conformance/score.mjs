// score.mjs KIND DIR: compares the results in DIR with what scores.txt says that
// KIND, server or client, must reach.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const [kind, dir] = process.argv.slice(2);
const runs = readdirSync(dir);
let passed = 0, bad = 0, scenarios = 0;
for (const line of readFileSync(new URL('scores.txt', import.meta.url), 'utf8').split('\n')) {
  const [of, scenario, least] = line.split(/\s+/);
  if (of !== kind) continue;
  scenarios++;
  // The suite names a directory [server-]SCENARIO-TIME.
  const run = runs.find((r) => r.replace(/-\d{4}-\d\d-\d\dT.*$/, '') === (kind === 'server' ? 'server-' : '') + scenario);
  const checks = run ? JSON.parse(readFileSync(join(dir, run, 'checks.json'))) : [];
  const good = checks.filter((c) => c.status === 'SUCCESS').length;
  const failures = checks.filter((c) => c.status === 'FAILURE' || c.status === 'WARNING');
  passed += good;
  if (run && good >= +least && failures.length === 0) continue;
  bad++;
  console.log(`${kind} ${scenario}: ${run ? `${good} checks passed, ${least} are expected` : 'did not run'}`);
  for (const f of failures) console.log(`  ${f.status} ${f.id}: ${f.errorMessage ?? f.description}`);
}
console.log(`${kind}: ${scenarios - bad} of ${scenarios} scenarios clean, ${passed} checks passed`);
process.exit(bad || !scenarios ? 1 : 0);
