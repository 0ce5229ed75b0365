import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import type { Lifetime } from '@stillhouse/testing';

export interface FileServer {
  readonly url: string;
  /** One line a request: `GET /path` or `GET /path bytes=5-`. */
  readonly requests: readonly string[];
}

export async function listen(server: Server, t: Lifetime): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** Serves a folder as plain web servers do, with ranges unless they are switched off. */
export async function serveFolder(
  t: Lifetime,
  folder: string,
  options: { readonly ranges?: boolean; readonly token?: string } = {},
): Promise<FileServer> {
  const requests: string[] = [];
  const server = createServer(async (request, response) => {
    const path = decodeURIComponent(new URL(request.url!, 'http://host').pathname);
    const { range } = request.headers;
    requests.push(`${request.method} ${path}${range === undefined ? '' : ` ${range}`}`);
    if (options.token !== undefined && request.headers.authorization !== `Bearer ${options.token}`) {
      response.writeHead(401).end();
      return;
    }
    const entry = await stat(join(folder, path)).catch(() => undefined);
    if (entry === undefined || !entry.isFile()) {
      response.writeHead(404).end('not here');
      return;
    }
    const start = options.ranges === false ? undefined : Number(/^bytes=(\d+)-/.exec(range ?? '')?.[1] ?? Number.NaN);
    if (start === undefined || Number.isNaN(start)) {
      response.writeHead(200, { 'content-length': entry.size });
      createReadStream(join(folder, path)).pipe(response);
    } else if (start >= entry.size) {
      response.writeHead(416, { 'content-range': `bytes */${entry.size}` }).end();
    } else {
      response.writeHead(206, {
        'content-length': entry.size - start,
        'content-range': `bytes ${start}-${entry.size - 1}/${entry.size}`,
      });
      createReadStream(join(folder, path), { start }).pipe(response);
    }
  });
  return { url: await listen(server, t), requests };
}
