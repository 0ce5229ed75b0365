import type { InferenceSession } from 'onnxruntime-node';

/**
 * Outputs that are written where they belong, and not copied as well.
 *
 * The binding makes a new ArrayBuffer of every output once a run is over, also of one that was written into a tensor of
 * ours: at half a billion parameters a training step copied 10 GB. It goes through the outputs in their order, and
 * refuses the first that is no tensor. So a model gets an empty sequence for its first output; that refusal then means
 * that the run is done, and that nothing was copied.
 */
const FIRST_OUTPUT = 'stillhouse.first_output';
/** `OrtValueToNapiValue` of onnxruntime-node 1.30. Other words would fail every run, and so be noticed. */
const REFUSAL = 'Non tensor type is temporarily not supported.';

/** One length-delimited field of a protobuf message; all of ours are shorter than 128 bytes. */
const field = (number: number, body: readonly number[]): readonly number[] => [(number << 3) | 2, body.length, ...body];
const text = (value: string) => [...Buffer.from(value)];

/** ModelProto { graph: { node: SequenceEmpty, output: a sequence of float tensors } }. */
function encodeFirstOutput(): Uint8Array {
  const node = [...field(2, text(FIRST_OUTPUT)), ...field(3, text(FIRST_OUTPUT)), ...field(4, text('SequenceEmpty'))];
  const float = field(1, [0x08, 1]);
  const type = field(4, field(1, float));
  const output = [...field(1, text(FIRST_OUTPUT)), ...field(2, type)];
  const graph = [...field(1, node), ...field(12, output)];
  return Uint8Array.from(field(7, graph));
}

/** The model with that first output. Protobuf messages one after the other are merged when they are read. */
export function addFirstOutput(model: Uint8Array): Uint8Array {
  return Buffer.concat([encodeFirstOutput(), model]);
}

/** The outputs that the model had before. */
export function ownOutputs<Output extends { readonly name: string }>(outputs: readonly Output[]): readonly Output[] {
  return outputs.filter(({ name }) => name !== FIRST_OUTPUT);
}

/** Runs a session of a model with {@link addFirstOutput}; `fetches` are tensors for all its own outputs. */
export async function runUncopied(
  session: InferenceSession,
  feeds: InferenceSession.FeedsType,
  fetches: Readonly<Record<string, InferenceSession.NullableOnnxValueMapType[string]>>,
): Promise<void> {
  try {
    await session.run(feeds, { [FIRST_OUTPUT]: null, ...fetches });
  } catch (error) {
    if (!(error instanceof Error) || error.message !== REFUSAL) throw error;
  }
}
