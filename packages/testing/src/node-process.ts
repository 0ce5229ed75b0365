import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { isAbsolute, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface NodeOptions {
  readonly cwd?: string;
  /** Added to this process's environment; `undefined` takes a variable away. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Written to standard input, which is then closed; empty if not given. */
  readonly input?: string;
  /** After this long the process is killed and `signal` says so. 5 minutes if not given. */
  readonly timeoutMs?: number;
  /** The script itself, though there is a bundle of it. */
  readonly asSource?: boolean;
}

export interface NodeResult {
  /** Exit status, null if a signal ended the process. */
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface NodeProcess {
  /** For signals and for reading output as it comes. */
  readonly child: ChildProcess;
  readonly finished: Promise<NodeResult>;
}

const root = fileURLToPath(new URL('../../..', import.meta.url));

/** The script as `npm test` has bundled it (scripts/bundle-for-tests.ts), where it has: that starts much sooner. */
function findBundled(script: string): string | undefined {
  const { STILLHOUSE_TEST_SCRIPTS } = process.env;
  const place = relative(root, script);
  if (STILLHOUSE_TEST_SCRIPTS === undefined || place.startsWith('..') || isAbsolute(place)) return undefined;
  const path = join(STILLHOUSE_TEST_SCRIPTS, place).replace(/\.ts$/, '.js');
  return existsSync(path) ? path : undefined;
}

/**
 * Starts a real Node.js process that understands TypeScript: `args` are a script and its arguments, as after `node`.
 */
export function startNode(args: readonly string[], options: NodeOptions = {}): NodeProcess {
  const bundled = options.asSource === true ? undefined : findBundled(args[0]!);
  const command =
    bundled === undefined ? ['--import', import.meta.resolve('tsx'), ...args] : [bundled, ...args.slice(1)];
  const child = spawn(process.execPath, command, {
    cwd: options.cwd,
    env: { ...process.env, ...options.env },
    stdio: ['pipe', 'pipe', 'pipe'],
    timeout: options.timeoutMs ?? 300_000,
    killSignal: 'SIGKILL',
  });
  const collected = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8');
    child[name].on('data', (text: string) => {
      collected[name] += text;
    });
  }
  // A process that ends without reading its input closes the pipe under us; its exit status tells the story.
  child.stdin.on('error', () => {});
  child.stdin.end(options.input ?? '');
  const finished = new Promise<NodeResult>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve({ code, signal, ...collected }));
  });
  return { child, finished };
}

/** Runs a Node.js process to its end; see {@link startNode}. Does not reject on a failing exit status. */
export function runNode(args: readonly string[], options: NodeOptions = {}): Promise<NodeResult> {
  return startNode(args, options).finished;
}
