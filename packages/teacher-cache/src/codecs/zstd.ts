import { Zstd } from '@hpcc-js/wasm-zstd';

/** Zstandard as WebAssembly: Node 20 has none of its own. */
export interface ZstdCodec {
  compress(bytes: Uint8Array): Uint8Array;
  /**
   * @param sizeBytes what the content must be long; a frame that says otherwise is refused before anything is allocated
   * @throws RangeError
   */
  decompress(frame: Uint8Array, sizeBytes: number): Uint8Array;
}

/** Level 3 is where planes of top-k ids stop getting smaller. */
const LEVEL = 3;

let loading: Promise<ZstdCodec> | undefined;

/** The codec, loaded once for the process (4 ms). */
export function loadZstd(): Promise<ZstdCodec> {
  loading ??= Zstd.load().then((zstd) => ({
    compress: (bytes) => zstd.compress(bytes, LEVEL),
    decompress: (frame, sizeBytes) => {
      const declared = readContentSize(frame);
      if (declared !== sizeBytes) {
        throw new RangeError(`a zstd frame holds ${declared ?? 'an unknown number of'} bytes, expected ${sizeBytes}`);
      }
      let content: Uint8Array | undefined;
      try {
        content = zstd.decompress(frame);
      } catch (cause) {
        throw new RangeError('a zstd frame is damaged', { cause });
      }
      if (content.length !== sizeBytes) throw new RangeError('a zstd frame is damaged');
      return content;
    },
  }));
  return loading;
}

/** Frame_Content_Size of the header (RFC 8878, 3.1.1.1); undefined where it is not a frame or does not say. */
function readContentSize(frame: Uint8Array): number | undefined {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame.length < 6 || view.getUint32(0, true) !== 0xfd2fb528) return undefined;
  const descriptor = frame[4]!;
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const dictionaryIdBytes = [0, 1, 2, 4][descriptor & 3]!;
  const at = 5 + (isSingleSegment ? 0 : 1) + dictionaryIdBytes;
  const sizeBytes = [isSingleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6]!;
  if (sizeBytes === 0 || frame.length < at + sizeBytes) return undefined;
  switch (sizeBytes) {
    case 1:
      return frame[at]!;
    case 2:
      return view.getUint16(at, true) + 256;
    case 4:
      return view.getUint32(at, true);
    default:
      return Number(view.getBigUint64(at, true));
  }
}
