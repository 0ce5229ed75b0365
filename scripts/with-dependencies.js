#!/usr/bin/env node
// Runs a script after making sure that node_modules holds what package-lock.json asks for; without a
// script it only makes sure.
// Plain JavaScript without imports from npm: it must run on a machine that has only Node.js and git.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const stampPath = join(root, 'node_modules', '.stillhouse-installed');

function lockDigest() {
  return createHash('sha256')
    .update(readFileSync(join(root, 'package-lock.json')))
    .update(process.version)
    .digest('hex');
}

function installIfStale() {
  const wanted = lockDigest();
  if (existsSync(stampPath) && readFileSync(stampPath, 'utf8') === wanted) return;
  console.error('Installing dependencies (npm ci), once per change of package-lock.json ...');
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
  const run = spawnSync(npm, ['ci', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: root,
    stdio: ['ignore', 2, 2],
    shell: process.platform === 'win32',
  });
  if (run.status !== 0) process.exit(run.status ?? 1);
  writeFileSync(stampPath, wanted);
}

const [script, ...rest] = process.argv.slice(2);
installIfStale();
if (script === undefined) process.exit(0);
const loader = script.endsWith('.ts') ? ['--import', 'tsx'] : [];
const run = spawnSync(process.execPath, [...loader, join(root, script), ...rest], { stdio: 'inherit' });
process.exit(run.status ?? 1);
