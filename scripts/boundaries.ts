import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { type Import, type ScannedFile, scanImports } from './imports.ts';
import { libraryOwners, ranks, separated, testLibraries, testPackages } from './ranks.ts';

export type Rule =
  | 'rank'
  | 'separation'
  | 'deep-import'
  | 'test-only'
  | 'owner'
  | 'dependency'
  | 'cycle'
  | 'exports'
  | 'path';

export interface Violation {
  /** Path from the repository's root, with the line behind a colon where there is one. */
  readonly where: string;
  readonly rule: Rule;
  readonly problem: string;
}

interface SourceFile extends ScannedFile {
  /** Absolute. */
  readonly path: string;
  readonly isTest: boolean;
}

interface Package {
  readonly name: string;
  readonly folder: string;
  readonly dependencies: ReadonlySet<string>;
  readonly devDependencies: ReadonlySet<string>;
  readonly exports: unknown;
  readonly files: readonly SourceFile[];
}

const scope = '@stillhouse/';
/** The package that is the command: nothing imports it but tests. */
const command = 'cli';
/** The package that lists the libraries for tests. */
const libraryHost = 'testing';
const scripts = ['.ts', '.mts', '.cts', '.js', '.mjs', '.cjs'];

/** Checks every import in a repository and returns what breaks a rule, in the order of the files. */
export function checkBoundaries(root: string): { readonly violations: readonly Violation[]; readonly files: number } {
  const packages = readPackages(root);
  const outside = ['scripts', 'test', 'bench'].flatMap((folder) => readSources(join(root, folder)));
  const violations: Violation[] = [
    ...checkTable(packages),
    ...packages.flatMap((one) => [
      ...checkExports(root, one),
      ...one.files.flatMap((file) => checkFile(root, one, file)),
      ...checkUnused(root, one),
      ...checkCycles(root, one),
    ]),
    ...outside.flatMap((file) => checkOutside(root, file)),
  ];
  const files = packages.reduce((count, one) => count + one.files.length, outside.length);
  return { violations, files };
}

function readPackages(root: string): Package[] {
  return readdirSync(join(root, 'packages'), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => {
      const folder = join(root, 'packages', name);
      const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      return {
        name,
        folder,
        dependencies: new Set(Object.keys(manifest.dependencies ?? {})),
        devDependencies: new Set(Object.keys(manifest.devDependencies ?? {})),
        exports: manifest.exports,
        files: [...readSources(join(folder, 'src')), ...readSources(join(folder, 'bin'))],
      };
    });
}

function readSources(folder: string): SourceFile[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .filter((path) => scripts.some((ending) => path.endsWith(ending)))
    .map((path) => join(folder, path))
    .filter((path) => !/[\\/](?:node_modules|golden|fixtures)[\\/]/.test(path))
    .sort()
    .map((path) => ({ path, isTest: isTestPath(path), ...scanImports(readFileSync(path, 'utf8')) }));
}

/** Tests, and in a folder `src/testing` what several tests of one package share. */
function isTestPath(path: string): boolean {
  return path.endsWith('.test.ts') || /[\\/]src[\\/]testing[\\/]/.test(path);
}

function checkTable(packages: readonly Package[]): Violation[] {
  const known = new Set([...Object.keys(ranks), ...Object.keys(testPackages)]);
  const present = new Set(packages.map((one) => one.name));
  const table = 'scripts/ranks.ts';
  return [
    ...[...present]
      .filter((name) => !known.has(name))
      .map((name) => violate(`packages/${name}`, 'rank', `the package has no rank; give it one in ${table}`)),
    ...[...known]
      .filter((name) => !present.has(name))
      .map((name) => violate(table, 'rank', `there is no package ${name}; take it out of the table`)),
  ];
}

function checkExports(root: string, one: Package): Violation[] {
  const where = place(root, join(one.folder, 'package.json'));
  if (one.exports !== './src/index.ts') {
    return [violate(where, 'exports', `exports must be "./src/index.ts", got ${JSON.stringify(one.exports)}`)];
  }
  if (one.files.length > 0 && !existsSync(join(one.folder, 'src', 'index.ts'))) {
    return [violate(where, 'exports', 'src/index.ts, the only export, is missing')];
  }
  return [];
}

function checkFile(root: string, one: Package, file: SourceFile): Violation[] {
  return file.imports.flatMap((found) => {
    const where = place(root, file.path, found);
    const { specifier } = found;
    if (specifier === undefined) {
      return [violate(where, 'path', 'the path of this import is computed and cannot be checked; spell it out')];
    }
    if (specifier.startsWith('.')) return checkRelative(root, one, file, { ...found, specifier });
    if (found.kind === 'url' || isBuiltin(specifier)) return [];
    return specifier.startsWith(scope)
      ? checkWorkspaceImport(where, one, file, specifier)
      : checkLibraryImport(where, one, file, specifier);
  });
}

type NamedImport = Import & { readonly specifier: string };

function checkRelative(root: string, one: Package, file: SourceFile, found: NamedImport): Violation[] {
  const { specifier } = found;
  const where = place(root, file.path, found);
  const target = resolve(dirname(file.path), specifier);
  const otherPackage = packageOf(root, target);
  if (otherPackage !== undefined && otherPackage !== one.name) {
    const problem = `${specifier} reaches into package ${otherPackage}; import ${scope}${otherPackage}`;
    return [violate(where, 'deep-import', problem)];
  }
  // A place given as a URL may be a folder or data outside of the package, such as goldens.
  if (found.kind === 'url' && !scripts.some((ending) => specifier.endsWith(ending))) return [];
  if (!target.startsWith(one.folder + sep)) {
    return [violate(where, 'deep-import', `${specifier} leaves the package`)];
  }
  if (!existsSync(target)) {
    return [violate(where, 'path', `${specifier} does not exist; relative imports name the file, with its .ts`)];
  }
  if (!file.isTest && isTestPath(target)) {
    return [violate(where, 'test-only', `${specifier} is for tests; only tests may import it`)];
  }
  return [];
}

function checkWorkspaceImport(where: string, one: Package, file: SourceFile, specifier: string): Violation[] {
  const [target, ...deeper] = specifier.slice(scope.length).split('/') as [string, ...string[]];
  if (target === one.name) {
    return [violate(where, 'path', `${specifier} is this package itself; import the file by its relative path`)];
  }
  const violations: Violation[] = [];
  if (deeper.length > 0) {
    violations.push(
      violate(where, 'deep-import', `${specifier} goes past the package's index; import ${scope}${target}`),
    );
  }
  if (target in testPackages) return [...violations, ...checkTestPackageImport(where, one, file, target)];
  const rank = ranks[target];
  if (rank === undefined) {
    return [...violations, violate(where, 'rank', `there is no package ${target} in scripts/ranks.ts`)];
  }
  const pair = separated.find(({ packages }) => packages.includes(one.name) && packages.includes(target));
  if (pair !== undefined) {
    violations.push(violate(where, 'separation', `${one.name} must not import ${target}: ${pair.reason}`));
  } else {
    const limit = testPackages[one.name] ?? ranks[one.name] ?? Infinity;
    if (rank >= limit) {
      const direction = rank === ranks[one.name] ? 'sideways' : 'upward';
      const problem = `${one.name} may import ranks below ${limit} only; ${target} has rank ${rank} (${direction})`;
      violations.push(violate(where, 'rank', problem));
    }
  }
  return [...violations, ...checkListed(where, one, file, `${scope}${target}`)];
}

function checkTestPackageImport(where: string, one: Package, file: SourceFile, target: string): Violation[] {
  const testRank = testPackages[target]!;
  const ownRank = testPackages[one.name];
  if (ownRank !== undefined) {
    if (testRank < ownRank) return checkListed(where, one, file, `${scope}${target}`);
    const problem = `${one.name} may import ranks below ${ownRank} only; ${target} has rank ${testRank}`;
    return [violate(where, 'rank', problem)];
  }
  if (!file.isTest) return [violate(where, 'test-only', `${scope}${target} is for tests only`)];
  const rank = ranks[one.name] ?? Infinity;
  if (testRank <= rank) return [];
  return [violate(where, 'rank', `${target} is for tests of rank ${testRank} and above; ${one.name} has rank ${rank}`)];
}

function checkLibraryImport(where: string, one: Package, file: SourceFile, specifier: string): Violation[] {
  const library = libraryOf(specifier);
  if (testLibraries.includes(library)) {
    if (file.isTest || one.name in testPackages) return [];
    return [violate(where, 'test-only', `${library} is for tests only`)];
  }
  const owners = libraryOwners[library];
  if (owners === undefined) {
    return [
      violate(where, 'owner', `${library} has no owner; a new library needs a reason and a row in scripts/ranks.ts`),
    ];
  }
  if (!owners.includes(one.name)) {
    return [violate(where, 'owner', `${library} belongs to ${owners.join(' and ')}; use what that package exports`)];
  }
  return checkListed(where, one, file, library);
}

/** What the product imports stands in `dependencies`; what only tests import may stand in `devDependencies`. */
function checkListed(where: string, one: Package, file: SourceFile, dependency: string): Violation[] {
  if (one.dependencies.has(dependency) || (file.isTest && one.devDependencies.has(dependency))) return [];
  const problem = `${dependency} is not among the dependencies in packages/${one.name}/package.json; list it`;
  return [violate(where, 'dependency', problem)];
}

function checkUnused(root: string, one: Package): Violation[] {
  // A string counts as use too: `--import tsx` on a command line needs the library all the same.
  const used = new Set<string>(one.files.flatMap((file) => [...file.strings].map(libraryOf)));
  const hosted: readonly string[] = one.name === libraryHost ? testLibraries : [];
  return [...one.dependencies, ...one.devDependencies]
    .filter((dependency) => one.files.length > 0 && !used.has(dependency) && !hosted.includes(dependency))
    .map((dependency) => {
      const where = place(root, join(one.folder, 'package.json'));
      return violate(where, 'dependency', `${dependency} is listed but nothing imports it; take it out`);
    });
}

/**
 * Cycles among the files of one package, each named once. Imports of types count: a cycle is one concept in two files.
 */
function checkCycles(root: string, one: Package): Violation[] {
  const byPath = new Map(one.files.map((file) => [file.path, file]));
  const done = new Set<string>();
  const violations: Violation[] = [];
  const visit = (file: SourceFile, trail: readonly SourceFile[]) => {
    const start = trail.indexOf(file);
    if (start !== -1) {
      const names = [...trail.slice(start), file].map(({ path }) => relative(one.folder, path).split(sep).join('/'));
      violations.push(violate(place(root, file.path), 'cycle', `imports itself: ${names.join(' -> ')}`));
      return;
    }
    if (done.has(file.path)) return;
    for (const { specifier, kind } of file.imports) {
      if (kind === 'url' || specifier === undefined || !specifier.startsWith('.')) continue;
      const next = byPath.get(resolve(dirname(file.path), specifier));
      if (next !== undefined) visit(next, [...trail, file]);
    }
    done.add(file.path);
  };
  for (const file of one.files) visit(file, []);
  return violations;
}

/**
 * Scripts, benchmarks and tests across packages may import any package by its name; the first two but the command, for
 * what they need of it belongs in `experiments`.
 */
function checkOutside(root: string, file: SourceFile): Violation[] {
  return file.imports.flatMap((found) => {
    const { specifier, kind } = found;
    if (specifier === undefined || kind === 'url') return [];
    const where = place(root, file.path, found);
    if (specifier.startsWith(scope) && specifier.split('/').length > 2) {
      return [violate(where, 'deep-import', `${specifier} goes past the package's index`)];
    }
    if (specifier === `${scope}${command}` && !file.isTest) {
      return [
        violate(where, 'rank', `${specifier} is the terminal; what is needed of it belongs in experiments or below`),
      ];
    }
    const target = specifier.startsWith('.') ? packageOf(root, resolve(dirname(file.path), specifier)) : undefined;
    if (target === undefined) return [];
    return [violate(where, 'deep-import', `${specifier} reaches into package ${target}; import ${scope}${target}`)];
  });
}

function packageOf(root: string, path: string): string | undefined {
  const [folder, name] = relative(root, path).split(sep);
  return folder === 'packages' ? name : undefined;
}

function libraryOf(specifier: string): string {
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/');
}

function place(root: string, path: string, found?: Import): string {
  const name = relative(root, path).split(sep).join('/');
  return found === undefined ? name : `${name}:${found.line}`;
}

function violate(where: string, rule: Rule, problem: string): Violation {
  return { where, rule, problem };
}
