// The bundle of the command: plain JavaScript that starts in a fifth of the time that its TypeScript takes. Every start
// comes through here, so this is plain JavaScript too, without an import from npm. src/make-command-bundle.ts makes one.
import { createHash, randomBytes } from 'node:crypto';
import {
  accessSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import module from 'node:module';
import { join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const root = resolve(fileURLToPath(new URL('../../..', import.meta.url)));
const cache = join(root, 'node_modules', '.cache', 'stillhouse');
const nodeMajor = process.versions.node.split('.')[0];
const touchEveryMs = 3_600_000;
/** A bundle that no process has touched for so long is in nobody's use. */
const unusedAfterMs = 24 * 3_600_000;

/**
 * Loads the bundle of the sources as they are now, and makes it first where there is no whole one.
 * @param make `(root, { staging, folder })` writes the files that shall run in `folder` to `staging`; false if it cannot.
 *   Without the folders there is no place to write to
 * @returns what packages/cli/src/main.ts exports; undefined where no bundle can be written
 */
export async function loadBundle(make) {
  const key = keyOfSources();
  const folder = findBundle(key) ?? (await addBundle(key, make));
  if (folder === undefined) return undefined;
  keepInUse(folder);
  module.enableCompileCache?.(join(folder, 'compiled')); // From Node.js 22 on: what one start compiles the next does not.
  return import(pathToFileURL(join(folder, 'packages', 'cli', 'src', 'main.js')).href);
}

/**
 * Names the sources by their contents: in images and checkouts times of files change where contents do not. The root is
 * part of the name since it stands in the bundle, and whoever copies node_modules copies the bundles of another root.
 * A name is remembered for the sizes and times of the files, which takes a third of the time that it takes to read them.
 */
function keyOfSources() {
  const paths = listSources();
  const stats = paths.map((path) => {
    const { size, mtimeMs, ctimeMs } = statSync(join(root, path));
    return `${path} ${size} ${mtimeMs} ${ctimeMs}`; // ctime: nobody can set it back
  });
  const remembered = join(cache, `key-${nameOf([root, nodeMajor, ...stats].join('\n'))}`);
  const known = ifThere(() => readFileSync(remembered, 'utf8'));
  if (known !== undefined && /^[0-9a-f]{32}$/.test(known)) return known;
  const hash = createHash('sha256').update(`${root}\n${nodeMajor}\n`);
  for (const path of paths) {
    const contents = readFileSync(join(root, path));
    hash.update(`${path}\n${contents.length}\n`).update(contents);
  }
  const key = hash.digest('hex').slice(0, 32);
  whereWritable(() => writeFileSync(remembered, key));
  return key;
}

/** What a bundle is made of; the lock files stand for esbuild and for the libraries that become part of it. */
function listSources() {
  const paths = ['package-lock.json', 'node_modules/.package-lock.json', 'tsconfig.json'].filter((path) =>
    existsSync(join(root, path)),
  );
  const addFolder = (folder) => {
    const entries = readdirSync(join(root, folder), { withFileTypes: true });
    for (const entry of entries.sort((one, other) => (one.name < other.name ? -1 : 1))) {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) {
        if (entry.name !== 'testing' && entry.name !== 'node_modules') addFolder(path);
      } else if (isSource(entry.name)) paths.push(path);
    }
  };
  addFolder('packages');
  return paths;
}

function isSource(name) {
  return name === 'package.json' || (name.endsWith('.ts') && !name.endsWith('.test.ts'));
}

function nameOf(contents) {
  return createHash('sha256').update(contents).digest('hex').slice(0, 32);
}

function ifThere(read) {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** A broken one is removed: no start may run it. */
function findBundle(key) {
  for (const name of namesInCache().filter((one) => one.startsWith(`${key}-`))) {
    const folder = join(cache, name);
    if (isWhole(folder)) return folder;
    discard(folder);
  }
  return undefined;
}

function namesInCache() {
  return ifThere(() => readdirSync(cache)) ?? [];
}

/** bundle.json has the sha256 of every file by its path. */
function isWhole(folder) {
  const isTrue = ifThere(() => {
    const digests = Object.entries(JSON.parse(readFileSync(join(folder, 'bundle.json'), 'utf8')));
    return digests.every(([path, digest]) => {
      const contents = readFileSync(join(folder, path));
      return digest === createHash('sha256').update(contents).digest('hex');
    });
  });
  return isTrue === true;
}

/** No name is used twice, so starts at the same time make a bundle each and never meet. */
async function addBundle(key, make) {
  const unique = randomBytes(6).toString('hex');
  const staging = join(cache, `making-${unique}`);
  const folder = join(cache, `${key}-${unique}`);
  try {
    accessSync(join(root, 'node_modules')); // makes none where nothing is installed
    mkdirSync(staging, { recursive: true });
  } catch {
    await make(root, undefined);
    return undefined;
  }
  try {
    const isMade = await make(root, { staging, folder });
    // Whoever saves a file meanwhile has made a bundle of neither the sources before nor those after.
    if (!isMade || keyOfSources() !== key) return undefined;
    renameSync(staging, folder);
  } finally {
    discard(staging);
  }
  removeUnused();
  return folder;
}

/** For as long as this process runs: it may load parts of the bundle, and start threads from it, at any time. */
function keepInUse(folder) {
  const touch = () => whereWritable(() => utimesSync(folder, new Date(), new Date()));
  touch();
  setInterval(touch, touchEveryMs).unref();
}

/** Bundles and names of other sources, and what a killed process was making. */
function removeUnused() {
  for (const name of namesInCache()) {
    const path = join(cache, name);
    const info = statSync(path, { throwIfNoEntry: false });
    if (info !== undefined && Date.now() - info.mtimeMs > unusedAfterMs) discard(path);
  }
}

function discard(folder) {
  whereWritable(() => rmSync(folder, { recursive: true, force: true }));
}

/** What keeps the folder tidy is left to those who may write there; no start depends on it. */
function whereWritable(write) {
  try {
    write();
  } catch {
    // Read-only, or of another user.
  }
}
