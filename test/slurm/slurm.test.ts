import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode } from '@stillhouse/testing';

const path = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const bin = path('../../packages/cli/bin/stillhouse.js');
const teacher = path('../golden/qwen2-tiny-untied');

const isThere = (program: string) => {
  try {
    execFileSync('sh', ['-c', `command -v ${program}`], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};

/** Why the test cannot run; false where it can. Slurm is installed only where STILLHOUSE_INSTALL_SLURM=1 allows it. */
function findObstacle(): string | false {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return 'Slurm daemons of its own need root on Linux';
  const programs = ['slurmctld', 'slurmd', 'munged', 'sbatch'];
  const isComplete = () => programs.every(isThere);
  if (!isComplete() && process.env.STILLHOUSE_INSTALL_SLURM === '1') {
    execFileSync('sh', [path('install.sh')], { stdio: ['ignore', 'ignore', 'inherit'] });
  }
  return isComplete()
    ? false
    : 'no slurmctld, slurmd, munged and sbatch; set STILLHOUSE_INSTALL_SLURM=1 to have them installed';
}

/** Starts a controller and two nodes; everything stops when the test ends. */
async function startCluster(t: TestContext, folder: string): Promise<Readonly<Record<string, string>>> {
  const port = 20_000 + (process.pid % 10_000);
  const cluster = spawn('bash', [path('start-cluster.sh'), folder, String(port)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const ended = new Promise<void>((resolve) => cluster.on('close', () => resolve()));
  t.after(async () => {
    cluster.stdin.end();
    await ended;
  });
  const nodes = await new Promise<string>((resolve, reject) => {
    cluster.stdout.once('data', (text: Buffer) => resolve(text.toString()));
    cluster.on('close', () => reject(new Error('the cluster did not start')));
  });
  assert.match(nodes, /n1 idle\nn2 idle/, readLogs(join(folder, 'log')));
  return { SLURM_CONF: join(folder, 'slurm.conf') };
}

const readLogs = (folder: string) =>
  readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ name }) => `--- ${name}\n${readFileSync(join(folder, name), 'utf8').slice(-2000)}`)
    .join('\n');

/** The code blocks of the guide, which are what is tested. */
async function readScripts(): Promise<readonly string[]> {
  const guide = await readFile(path('../../docs/cluster.md'), 'utf8');
  return [...guide.matchAll(/```bash\n(.*?)```/gs)].map(([, script]) => script!);
}

function readTree(folder: string): Readonly<Record<string, string>> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return Object.fromEntries(paths.map((one) => [one.slice(folder.length + 1), readFileSync(one).toString('base64')]));
}

const makeRows = (count: number) =>
  Array.from({ length: count }, (_, row) => {
    const length = 6 + ((row * 7) % 19);
    return JSON.stringify({
      id: `row-${row}`,
      input_ids: Array.from({ length }, (_, i) => (row * 131 + i * i * 37 + 5) % 512),
      loss_mask: Array.from({ length }, (_, i) => (i * 2 >= length ? 1 : 0)),
    });
  }).join('\n');

const obstacle = findObstacle();
if (obstacle !== false) console.log(`# the Slurm test is skipped: ${obstacle}`);

test('an array of four tasks on a real Slurm, one killed and requeued, builds the cache of one machine', {
  skip: obstacle,
  timeout: 300_000,
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  const data = join(folder, 'rows.jsonl');
  await writeFile(data, makeRows(5000));
  const straight = join(folder, 'straight');
  const args = ['--teacher', teacher, '--data', data];
  const built = await runNode([bin, 'cache', 'build', ...args, '--out', straight, '--threads', '1']);
  assert.equal(built.code, 0, built.stderr);

  await mkdir(join(folder, 'slurm'));
  const environment = await startCluster(t, join(folder, 'slurm'));
  const [array, submit] = (await readScripts()) as [string, string];
  assert.match(array, /#SBATCH --array=0-3\n/);
  const jobs = join(folder, 'jobs');
  await mkdir(join(jobs, 'bin'), { recursive: true });
  await writeFile(join(jobs, 'build-cache.sbatch'), array);
  await writeFile(join(jobs, 'bin/stillhouse'), `#!/bin/sh\nexec '${process.execPath}' '${bin}' "$@"\n`);
  await chmod(join(jobs, 'bin/stillhouse'), 0o755);
  const cache = join(folder, 'cache');
  const env = {
    ...process.env,
    ...environment,
    PATH: `${join(jobs, 'bin')}:${process.env.PATH}`,
    NODE_TEST_CONTEXT: '',
  };
  const run = (script: string) => execFileSync('bash', ['-ec', script], { cwd: jobs, env, encoding: 'utf8' }).trim();
  const named = submit.replace(/^export .*$/m, `export TEACHER='${teacher}' DATA='${data}' CACHE='${cache}'`);
  assert.notEqual(named, submit);
  const merge = run(`${named}\necho "$job" > job`).split('\n').at(-1)!;
  const job = (await readFile(join(jobs, 'job'), 'utf8')).trim();

  // The second task is killed when it has written some of its shards, and not all.
  const readPart = (): { complete: boolean; shards: readonly unknown[] } | undefined => {
    try {
      return JSON.parse(readFileSync(join(cache, 'parts/2-of-4.json'), 'utf8'));
    } catch {
      return undefined;
    }
  };
  const logs = () => `${readLogs(jobs)}\n${readLogs(join(folder, 'slurm/log'))}`;
  for (let round = 0; (readPart()?.shards.length ?? 0) === 0; round++) {
    await sleep(10);
    if (round % 100 === 99 && run('squeue -h') === '') assert.fail(`no task wrote a shard\n${logs()}`);
  }
  run(`scontrol requeue ${job}_1`);
  const left = readPart();
  assert.ok(left !== undefined && !left.complete, 'the task was done before it could be killed');

  while (run('squeue -h') !== '') {
    await sleep(500);
    // Slurm lets a requeued task wait for two minutes, so that nothing of it is left.
    if (run(`squeue -h -j ${job} -t PENDING -o %r`) === 'BeginTime')
      run(`scontrol update JobId=${job}_1 StartTime=now`);
  }
  assert.match(run(`scontrol show job ${job}_1`), /Restarts=1/);
  assert.match(run(`scontrol show job ${merge}`), /JobState=COMPLETED/, logs());
  assert.deepEqual(Object.keys(readTree(cache)), Object.keys(readTree(straight)));
  assert.deepEqual(readTree(cache), readTree(straight));
  assert.match(readFileSync(join(jobs, `merge-${merge}.log`), 'utf8'), /was merged already/);
});

test('the example for Kubernetes says the number of completions twice, the same', async () => {
  const guide = await readFile(path('../../docs/cluster.md'), 'utf8');
  const completions = /^ {2}completions: (\d+)$/m.exec(guide)?.[1];
  assert.equal(/name: JOB_COMPLETIONS\n\s+value: "(\d+)"/.exec(guide)?.[1], completions);
  const settings = guide.match(/args: \[(.*)\]/)![1]!.split(', ');
  // The container's own words, as one of its pods runs them.
  const { code, stdout, stderr } = await runNode([bin, 'cache', 'build', ...settings, '--dry-run'], {
    env: { JOB_COMPLETION_INDEX: '1', JOB_COMPLETIONS: completions },
  });
  assert.deepEqual([code, stdout], [1, '']);
  assert.match(stderr, /\/models\/teacher/);
});
