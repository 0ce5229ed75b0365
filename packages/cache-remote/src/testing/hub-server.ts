import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { Lifetime } from '@stillhouse/testing';
import { listen } from './file-server.ts';

export interface HubServer {
  readonly url: string;
  readonly requests: readonly string[];
  /** Titles of the commits, the oldest first. */
  readonly commits: readonly string[];
  /** Contents that came by Git LFS, by sha256. */
  readonly stored: ReadonlyMap<string, Buffer>;
}

export const HUB_TOKEN = 'hf_tokenThatIsNotToBeSeen';
/** Larger contents come in parts. */
const PART_BYTES = 300_000;

interface Entry {
  readonly content?: Buffer;
  readonly oid?: string;
  readonly size: number;
}

/**
 * A web server with the endpoints of Hugging Face that its client uses for a data set: preupload, Git LFS (plain and in
 * parts), commit, paths-info, tree, resolve. It checks tokens, hashes and sizes as the hub does. One repository,
 * `team/caches`.
 */
export async function startHub(t: Lifetime): Promise<HubServer> {
  const files = new Map<string, Entry>();
  const stored = new Map<string, Buffer>();
  const parts = new Map<string, Map<number, Buffer>>();
  const requests: string[] = [];
  const commits: string[] = [];
  let url = '';

  const answer = (response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}) => {
    response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(body));
  };

  const commit = (lines: readonly { readonly key: string; readonly value: Record<string, string> }[]) => {
    const changes: [string, Entry][] = [];
    for (const { key, value } of lines) {
      if (key === 'header') commits.push(value.summary!);
      if (key === 'file') {
        const content = Buffer.from(value.content!, 'base64');
        changes.push([value.path!, { content, size: content.length }]);
      }
      if (key === 'lfsFile') {
        const content = stored.get(value.oid!);
        if (content === undefined || content.length !== Number(value.size)) throw new Error('LFS object is not here');
        changes.push([value.path!, { oid: value.oid!, size: content.length }]);
      }
    }
    for (const [path, entry] of changes) files.set(path, entry);
  };

  const batch = (objects: readonly { readonly oid: string; readonly size: number }[]) => ({
    transfer: 'basic',
    objects: objects.map(({ oid, size }) => {
      if (stored.has(oid)) return { oid, size };
      if (size <= PART_BYTES) return { oid, size, actions: { upload: { href: `${url}/lfs/${oid}` } } };
      const count = Math.ceil(size / PART_BYTES);
      const links = Array.from({ length: count }, (_, i) => [
        String(i + 1).padStart(5, '0'),
        `${url}/lfs/${oid}/${i + 1}`,
      ]);
      const header = { chunk_size: String(PART_BYTES), ...Object.fromEntries(links) };
      return { oid, size, actions: { upload: { href: `${url}/lfs/${oid}/complete`, header } } };
    }),
  });

  const storeObject = (oid: string, content: Buffer): boolean => {
    if (createHash('sha256').update(content).digest('hex') !== oid) return false;
    stored.set(oid, content);
    return true;
  };

  const serve = (path: string, request: IncomingMessage, response: ServerResponse) => {
    const entry = files.get(path);
    if (entry === undefined) {
      answer(response, 404, { error: 'Entry not found' }, { 'x-error-code': 'EntryNotFound' });
      return;
    }
    const content = entry.content ?? stored.get(entry.oid!)!;
    const [, from, to] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? [];
    const etag = `"${entry.oid ?? createHash('sha1').update(content).digest('hex')}"`;
    if (from === undefined) {
      response.writeHead(200, { etag, 'content-length': content.length }).end(content);
      return;
    }
    const end = to === undefined || to === '' ? content.length : Math.min(content.length, Number(to) + 1);
    const range = `bytes ${from}-${end - 1}/${content.length}`;
    response
      .writeHead(206, { etag, 'content-length': end - Number(from), 'content-range': range })
      .end(content.subarray(Number(from), end));
  };

  const route = async (request: IncomingMessage, response: ServerResponse, body: Buffer) => {
    const path = decodeURIComponent(new URL(request.url!, 'http://hub').pathname);
    const [, oid, part] = /^\/lfs\/([0-9a-f]{64})(?:\/(\w+))?$/.exec(path) ?? [];
    // Links to the storage are signed; they take no token.
    if (oid !== undefined) {
      if (part === undefined) return void response.writeHead(storeObject(oid, body) ? 200 : 400).end();
      if (part !== 'complete') {
        parts.set(oid, (parts.get(oid) ?? new Map()).set(Number(part), body));
        return void response.writeHead(200, { etag: `"part-${part}"` }).end();
      }
      const listed = JSON.parse(body.toString()).parts as readonly {
        readonly partNumber: number;
        readonly etag: string;
      }[];
      const content = Buffer.concat(listed.map(({ partNumber }) => parts.get(oid)!.get(partNumber)!));
      const isRight =
        listed.every(({ partNumber, etag }) => etag === `"part-${partNumber}"`) && storeObject(oid, content);
      return answer(response, isRight ? 200 : 400, {});
    }
    if (request.headers.authorization !== `Bearer ${HUB_TOKEN}`)
      return answer(response, 401, { error: 'Invalid token' });
    const repository = /^\/(?:api\/)?datasets\/([\w-]+\/[\w-]+?)(?:\.git)?\/(.*)$/.exec(path);
    if (repository?.[1] !== 'team/caches') return answer(response, 404, { error: 'Repository not found' });
    const [action, ...rest] = repository[2]!.split('/');
    const at = rest.slice(1).join('/');
    if (action !== 'info' && rest[0] !== 'main') return answer(response, 404, { error: 'Invalid rev id' });
    switch (action) {
      case 'preupload': {
        const asked = JSON.parse(body.toString()).files as readonly {
          readonly path: string;
          readonly sample: string;
        }[];
        const mode = (sample: string) => (Buffer.from(sample, 'base64')[0] === 0x7b ? 'regular' : 'lfs');
        return answer(response, 200, {
          files: asked.map((file) => ({ path: file.path, uploadMode: mode(file.sample) })),
        });
      }
      case 'info':
        return answer(response, 200, batch(JSON.parse(body.toString()).objects));
      case 'commit':
        try {
          commit(
            body
              .toString()
              .split('\n')
              .map((line) => JSON.parse(line)),
          );
          return answer(response, 200, { commitOid: String(commits.length), commitUrl: url });
        } catch (error) {
          return answer(response, 400, { error: (error as Error).message });
        }
      case 'paths-info': {
        const { paths } = JSON.parse(body.toString()) as { readonly paths: readonly string[] };
        const found = paths.flatMap((one) => {
          const entry = files.get(one);
          if (entry === undefined) return [];
          const lfs = entry.oid === undefined ? {} : { lfs: { oid: entry.oid, size: entry.size, pointerSize: 130 } };
          return [{ path: one, type: 'file', size: entry.size, oid: 'x', ...lfs }];
        });
        return answer(response, 200, found);
      }
      case 'tree': {
        const found = [...files].filter(([one]) => one.startsWith(`${at}/`));
        if (found.length === 0) return answer(response, 404, { error: `${at} does not exist on "main"` });
        return answer(
          response,
          200,
          found.map(([one, { size }]) => ({ type: 'file', path: one, size, oid: 'x' })),
        );
      }
      case 'resolve':
        return serve(at, request, response);
      default:
        return answer(response, 404, { error: 'no such endpoint' });
    }
  };

  const server = createServer(async (request, response) => {
    requests.push(`${request.method} ${request.url}`);
    const received: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) received.push(chunk);
    await route(request, response, Buffer.concat(received));
  });
  url = await listen(server, t);
  return { url, requests, commits, stored };
}
