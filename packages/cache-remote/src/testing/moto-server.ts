import { spawn, spawnSync } from 'node:child_process';
import { createServer } from 'node:net';
import type { Lifetime } from '@stillhouse/testing';

/**
 * The Python that has moto: `STILLHOUSE_MOTO_PYTHON`, `STILLHOUSE_PYTHON` or `python3`.
 * @returns undefined if none has; then `why` says so
 */
export function findMoto(): { readonly python: string } | { readonly why: string } {
  const { STILLHOUSE_MOTO_PYTHON, STILLHOUSE_PYTHON } = process.env;
  for (const python of [STILLHOUSE_MOTO_PYTHON, STILLHOUSE_PYTHON, 'python3']) {
    if (python === undefined || python === '') continue;
    const { status } = spawnSync(python, ['-c', 'import moto.server, flask'], { stdio: 'ignore' });
    if (status === 0) return { python };
  }
  return { why: "no Python with moto: pip install 'moto[server]' and name it in STILLHOUSE_MOTO_PYTHON" };
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { readonly port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts a real S3 server process with an empty bucket `caches`. */
export async function startMoto(t: Lifetime, python: string): Promise<string> {
  const port = await freePort();
  const child = spawn(python, ['-m', 'moto.server', '-H', '127.0.0.1', '-p', String(port)], { stdio: 'ignore' });
  t.onTestFinished(() => child.kill('SIGKILL'));
  const url = `http://127.0.0.1:${port}`;
  for (let attempt = 0; ; attempt++) {
    try {
      const response = await fetch(`${url}/caches`, { method: 'PUT' });
      if (response.ok) return url;
      throw new Error(`moto answered ${response.status}`);
    } catch (error) {
      if (attempt === 300 || child.exitCode !== null) throw error;
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}
