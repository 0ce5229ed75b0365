import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { makeTemporaryFolder, runNode, unless } from '@stillhouse/testing';
import { type TestContext, test } from 'vitest';

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

/** Of the daemons of the next cluster. */
let port = 20_000 + (process.pid % 10_000);

/** Starts a controller and two nodes; everything stops when the test ends. */
async function startCluster(t: TestContext, folder: string): Promise<Readonly<Record<string, string>>> {
  port += 10;
  const cluster = spawn('bash', [path('start-cluster.sh'), folder, String(port)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  const ended = new Promise<void>((resolve) => cluster.on('close', () => resolve()));
  t.onTestFinished(async () => {
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

/** A cluster, and a folder to submit from in which `stillhouse` is a command. */
async function openWorkplace(t: TestContext, folder: string) {
  await mkdir(join(folder, 'slurm'));
  const environment = await startCluster(t, join(folder, 'slurm'));
  const jobs = join(folder, 'jobs');
  await mkdir(join(jobs, 'bin'), { recursive: true });
  await writeFile(join(jobs, 'bin/stillhouse'), `#!/bin/sh\nexec '${process.execPath}' '${bin}' "$@"\n`);
  await chmod(join(jobs, 'bin/stillhouse'), 0o755);
  const env = {
    ...process.env,
    ...environment,
    PATH: `${join(jobs, 'bin')}:${process.env.PATH}`,
  };
  const run = (script: string) => execFileSync('bash', ['-ec', script], { cwd: jobs, env, encoding: 'utf8' }).trim();
  const logs = () => `${readLogs(jobs)}\n${readLogs(join(folder, 'slurm/log'))}`;
  return { jobs, run, logs };
}

/** Waits until nothing is queued; the second task of the array was requeued. */
async function finishJobs(run: (script: string) => string, job: string): Promise<void> {
  while (run('squeue -h') !== '') {
    await sleep(500);
    // Slurm lets a requeued task wait for two minutes, so that nothing of it is left.
    if (run(`squeue -h -j ${job} -t PENDING -o %r`) === 'BeginTime') {
      run(`scontrol update JobId=${job}_1 StartTime=now`);
    }
  }
}

const makeRows = (count: number) =>
  Array.from({ length: count }, (_, row) => {
    const length = 6 + ((row * 7) % 19);
    return JSON.stringify({
      id: `row-${row}`,
      split: row % 4 === 0 ? 'test' : 'train',
      input_ids: Array.from({ length }, (_, i) => (row * 131 + i * i * 37 + 5) % 512),
      loss_mask: Array.from({ length }, (_, i) => (i * 2 >= length ? 1 : 0)),
    });
  }).join('\n');

const obstacle = findObstacle();
if (obstacle !== false) console.log(`# the Slurm test is skipped: ${obstacle}`);

test('an array of four tasks on a real Slurm, one killed and requeued, builds the cache of one machine', {
  ...unless(obstacle),
  timeout: 300_000,
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  const data = join(folder, 'rows.jsonl');
  await writeFile(data, makeRows(5000));
  const straight = join(folder, 'straight');
  const args = ['--teacher', teacher, '--data', data];
  const built = await runNode([bin, 'cache', 'build', ...args, '--out', straight, '--threads', '1']);
  assert.equal(built.code, 0, built.stderr);

  const { jobs, run, logs } = await openWorkplace(t, folder);
  const [array, submit] = (await readScripts()) as [string, string];
  assert.match(array, /#SBATCH --array=0-3\n/);
  await writeFile(join(jobs, 'build-cache.sbatch'), array);
  const cache = join(folder, 'cache');
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
  for (let round = 0; (readPart()?.shards.length ?? 0) === 0; round++) {
    await sleep(10);
    if (round % 100 === 99 && run('squeue -h') === '') assert.fail(`no task wrote a shard\n${logs()}`);
  }
  run(`scontrol requeue ${job}_1`);
  const left = readPart();
  assert.ok(left !== undefined && !left.complete, 'the task was done before it could be killed');

  await finishJobs(run, job);
  assert.match(run(`scontrol show job ${job}_1`), /Restarts=1/);
  assert.match(run(`scontrol show job ${merge}`), /JobState=COMPLETED/, logs());
  assert.deepEqual(Object.keys(readTree(cache)), Object.keys(readTree(straight)));
  assert.deepEqual(readTree(cache), readTree(straight));
  assert.match(readFileSync(join(jobs, `merge-${merge}.log`), 'utf8'), /was merged already/);
});

test('a sweep of four students by an array on a real Slurm, one task killed and requeued, ends as on one machine', {
  ...unless(obstacle),
  timeout: 300_000,
}, async (t) => {
  const folder = await makeTemporaryFolder(t);
  await writeFile(join(folder, 'rows.jsonl'), makeRows(24));
  const stillhouse = async (...args: string[]) => {
    const { code, stderr } = await runNode([bin, ...args], { cwd: folder });
    assert.equal(code, 0, stderr);
  };
  await stillhouse('cache', 'build', '--teacher', teacher, '--data', 'rows.jsonl', '--out', 'cache', '--threads', '1');
  const recipe = {
    ...{ cache: join(folder, 'cache'), student: path('../golden/qwen2-tiny'), split: 'train', evalSplit: 'test' },
    ...{ steps: 150, checkpointEvery: 5, batchTokens: 60, lr: 1e-3 },
    sweep: { grid: { temperature: [1, 2], alpha: [0.5, 1] } },
  };
  await writeFile(join(folder, 'sweep.json'), JSON.stringify(recipe));
  await stillhouse('sweep', 'sweep.json', '--out', 'straight', '--threads', '1');

  const { jobs, run, logs } = await openWorkplace(t, folder);
  const [, , array, submit] = (await readScripts()) as [string, string, string, string];
  assert.match(array, /stillhouse sweep /);
  await writeFile(join(jobs, 'sweep.sbatch'), array);
  const out = join(folder, 'swept');
  const named = submit.replace(/^export .*$/m, `export RECIPE='${join(folder, 'sweep.json')}' OUT='${out}'`);
  assert.notEqual(named, submit);
  const report = run(`${named}\necho "$job" > job`).split('\n').at(-1)!;
  const job = (await readFile(join(jobs, 'job'), 'utf8')).trim();

  // The second task is killed when its run has a checkpoint, and is not done.
  const victim = join(out, 'runs', 'alpha=1_temperature=1');
  const hasCheckpoint = () =>
    existsSync(join(victim, 'checkpoints')) &&
    readdirSync(join(victim, 'checkpoints')).some((name) => name.startsWith('step-'));
  for (let round = 0; !hasCheckpoint(); round++) {
    await sleep(5);
    if (round % 200 === 199 && run('squeue -h') === '') assert.fail(`no checkpoint was written\n${logs()}`);
  }
  run(`scontrol requeue ${job}_1`);
  assert.ok(!existsSync(join(victim, 'training.json')), 'the run was done before it could be killed');
  await finishJobs(run, job);
  assert.match(run(`scontrol show job ${job}_1`), /Restarts=1/);
  assert.match(run(`scontrol show job ${report}`), /JobState=COMPLETED/, logs());
  assert.match(readFileSync(join(jobs, `sweep-${job}_1.log`), 'utf8'), /train: going on after step \d+/);
  const printed = readFileSync(join(jobs, `report-${report}.log`), 'utf8');
  assert.equal(printed.match(/ finished /g)?.length, 4, printed);
  const runs = ['0.5', '1'].flatMap((alpha) => ['1', '2'].map((t) => `alpha=${alpha}_temperature=${t}`));
  for (const name of runs) {
    const [one, two] = ['straight', 'swept'].map((where) => join(folder, where, 'runs', name));
    const [weights, same] = [one, two].map((run) => readFileSync(join(run!, 'model.safetensors')));
    assert.ok(weights!.equals(same!), name);
    const [kd, alike] = [one, two].map((run) => JSON.parse(readFileSync(join(run!, 'kd.json'), 'utf8')));
    assert.deepEqual([kd.kl, kd.ce, kd.top1Agreement], [alike.kl, alike.ce, alike.top1Agreement]);
  }
});

test('the examples for Kubernetes say the number of completions twice, the same', async () => {
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
  const [, sweep] = [...guide.matchAll(/JOB_COMPLETIONS\n\s+value: "(\d+)"/g)].map(([, count]) => count);
  assert.equal(sweep, completions);
  const words = [...guide.matchAll(/args: \[(.*)\]/g)][1]![1]!.split(', ');
  const swept = await runNode([bin, 'sweep', ...words, '--dry-run'], {
    env: { JOB_COMPLETION_INDEX: '1', JOB_COMPLETIONS: sweep },
  });
  assert.match(swept.stderr, /\/data\/sweep\.json: the recipe cannot be read/);
});
