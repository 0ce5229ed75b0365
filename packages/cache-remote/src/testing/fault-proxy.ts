import { createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import type { Lifetime } from '@stillhouse/testing';
import { listen } from './file-server.ts';

/** What goes wrong with one exchange. */
export type Fault =
  | { readonly kind: 'status'; readonly status: number }
  /** The connection breaks before an answer. */
  | { readonly kind: 'reset' }
  /** The connection breaks, or the body just stops, after so many bytes of the answer's body. */
  | { readonly kind: 'truncate'; readonly afterBytes: number }
  /** After so many bytes the rest comes one byte at a time, ten a second. */
  | { readonly kind: 'drip'; readonly afterBytes: number }
  /** One bit of the answer's body is another. */
  | { readonly kind: 'flip'; readonly atByte: number }
  /** One bit of the request's body is another. */
  | { readonly kind: 'flip-request'; readonly atByte: number };

export interface FaultProxy {
  readonly url: string;
  readonly requests: readonly string[];
  /** How often a fault was put in. */
  faults(): number;
}

/** A real HTTP proxy in front of a server; `plan` says what happens to the nth request of one path (from 0). */
export async function startFaultProxy(
  t: Lifetime,
  target: string,
  plan: (request: { readonly method: string; readonly path: string; readonly nth: number }) => Fault | undefined,
): Promise<FaultProxy> {
  const counts = new Map<string, number>();
  const requests: string[] = [];
  let faults = 0;
  const server = createServer(async (request, response) => {
    const path = request.url!;
    const key = `${request.method} ${path}`;
    const nth = counts.get(key) ?? 0;
    counts.set(key, nth + 1);
    requests.push(`${key}${request.headers.range === undefined ? '' : ` ${request.headers.range}`}`);
    const fault = plan({ method: request.method!, path, nth });
    if (fault !== undefined) faults++;
    const body = await collect(request).catch(() => undefined);
    // The client is gone.
    if (body === undefined) return;
    if (fault?.kind === 'flip-request' && body.length > fault.atByte) body[fault.atByte]! ^= 4;
    if (fault?.kind === 'reset') {
      request.socket.resetAndDestroy();
      return;
    }
    if (fault?.kind === 'status') {
      response.writeHead(fault.status, { 'content-type': 'text/plain' }).end('a fault');
      return;
    }
    const onward = httpRequest(
      `${target}${path}`,
      { method: request.method!, headers: { ...request.headers, 'content-length': body.length } },
      (answer) => void relay(answer, fault),
    );
    if (request.headers['transfer-encoding'] !== undefined) onward.removeHeader('transfer-encoding');
    onward.on('error', () => response.destroy());
    onward.end(body);

    const relay = async (answer: IncomingMessage, kind: Fault | undefined) => {
      response.writeHead(answer.statusCode!, answer.headers);
      response.on('error', () => {});
      let sent = 0;
      try {
        for await (const chunk of answer as AsyncIterable<Buffer>) {
          const bytes = Buffer.from(chunk);
          if (kind?.kind === 'flip' && kind.atByte >= sent && kind.atByte < sent + bytes.length) {
            bytes[kind.atByte - sent]! ^= 4;
          }
          const limit = kind?.kind === 'truncate' || kind?.kind === 'drip' ? kind.afterBytes : Number.POSITIVE_INFINITY;
          const whole = bytes.subarray(0, Math.max(0, Math.min(bytes.length, limit - sent)));
          response.write(whole);
          sent += whole.length;
          if (whole.length === bytes.length) continue;
          if (kind?.kind === 'truncate') {
            // What was written goes out first.
            setTimeout(() => response.destroy(), 20);
            return;
          }
          for (const byte of bytes.subarray(whole.length)) {
            if (response.destroyed) return;
            response.write(Buffer.of(byte));
            await new Promise((resolve) => setTimeout(resolve, 100));
          }
          sent = Number.NEGATIVE_INFINITY;
        }
        response.end();
      } catch {
        response.destroy();
      }
    };
  });
  return { url: await listen(server, t), requests, faults: () => faults };
}

async function collect(request: IncomingMessage): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of request as AsyncIterable<Buffer>) parts.push(part);
  return Buffer.concat(parts);
}
