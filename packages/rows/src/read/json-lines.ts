import { createReadStream } from 'node:fs';
import { StillhouseError } from '@stillhouse/errors';

export interface Line {
  /** Counted from 1. */
  readonly number: number;
  readonly text: string;
}

const LINE_FEED = 0x0a;

/**
 * Lines of a UTF-8 file, without line end and byte order mark, one after the other: memory is that of a line.
 * Not node:readline, which also ends lines at U+2028 and U+2029, legal inside JSON strings, and replaces bytes that are
 * no UTF-8.
 * @throws StillhouseError DATA_NOT_READABLE, DATA_NOT_UTF8
 */
export async function* readLines(path: string): AsyncGenerator<Line> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let number = 0;
  const decode = (bytes: Buffer): Line => {
    number += 1;
    try {
      const text = decoder.decode(bytes);
      return { number, text: number === 1 ? text.replace(/^\uFEFF/, '') : text };
    } catch (cause) {
      throw new StillhouseError({
        code: 'DATA_NOT_UTF8',
        where: `${path}, line ${number}`,
        problem: 'the line is not valid UTF-8',
        remedy: 'Convert the file to UTF-8',
        cause,
      });
    }
  };
  let pieces: Buffer[] = [];
  for await (const chunk of readChunks(path)) {
    let start = 0;
    for (let end = chunk.indexOf(LINE_FEED); end >= 0; end = chunk.indexOf(LINE_FEED, start)) {
      pieces.push(chunk.subarray(start, end));
      yield decode(Buffer.concat(pieces));
      pieces = [];
      start = end + 1;
    }
    if (start < chunk.length) pieces.push(chunk.subarray(start));
  }
  if (pieces.length > 0) yield decode(Buffer.concat(pieces));
}

async function* readChunks(path: string): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 18 })) yield chunk as Buffer;
  } catch (cause) {
    const reason = (cause as NodeJS.ErrnoException).code ?? String(cause);
    throw new StillhouseError({
      code: 'DATA_NOT_READABLE',
      where: path,
      problem: reason === 'ENOENT' ? 'there is no such file' : `the data file cannot be read (${reason})`,
      remedy: 'Check the path given with --data',
      cause,
    });
  }
}
