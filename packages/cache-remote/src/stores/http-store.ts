import { PassingFault } from '../transfer/transfer-policy.ts';
import { explainStatus, readContentRange } from './http-status.ts';
import type { RemoteBody, RemoteReader } from './remote-store.ts';

/** A remote on a web server; it can be read only. */
export function openHttpStore(url: string): RemoteReader {
  const read = async (key: string, offset: number, signal: AbortSignal): Promise<RemoteBody | undefined> => {
    let response: Response;
    try {
      response = await fetch(`${url}/${key}`, {
        signal,
        // A body that the server compresses has other offsets than the file.
        headers: { 'accept-encoding': 'identity', ...(offset > 0 ? { range: `bytes=${offset}-` } : {}) },
      });
    } catch (cause) {
      signal.throwIfAborted();
      throw new PassingFault('the server cannot be reached', { cause });
    }
    const body = await readResponse(response, `${url}/${key}`, offset);
    if (body !== 'restart') return body;
    return read(key, 0, signal);
  };
  return { where: url, read, list: async () => undefined, close: () => {} };
}

/** @returns `restart` if the server has nothing at that offset; undefined if there is no such file */
export async function readResponse(
  response: Response,
  where: string,
  offset: number,
): Promise<RemoteBody | 'restart' | undefined> {
  const { status, headers } = response;
  if (status === 200 || status === 206) {
    const range = status === 206 ? readContentRange(headers.get('content-range')) : undefined;
    if (status === 206 && range === undefined) throw new PassingFault('the server sent a part without saying which');
    const length = headers.get('content-length');
    const totalBytes = range === undefined ? (length === null ? undefined : Number(length)) : range.total;
    return { offset: range?.first ?? 0, totalBytes, chunks: passFaults(response.body) };
  }
  await response.body?.cancel().catch(() => {});
  if (status === 404 || status === 410) return undefined;
  if (status === 416 && offset > 0) return 'restart';
  throw explainStatus(where, status, headers.get('retry-after'));
}

/** A connection that breaks while a body comes is a passing fault. */
async function* passFaults(body: ReadableStream<Uint8Array> | null): AsyncGenerator<Uint8Array> {
  if (body === null) return;
  try {
    yield* body as unknown as AsyncIterable<Uint8Array>;
  } catch (cause) {
    throw cause instanceof PassingFault ? cause : new PassingFault('the connection broke', { cause });
  }
}
