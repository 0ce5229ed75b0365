/** Llama 3.1's rescaling of rotary frequencies for a longer context. */
export interface Llama3RopeScaling {
  readonly kind: 'llama3';
  /** By how much the longest wavelengths are stretched. */
  readonly factor: number;
  readonly lowFrequencyFactor: number;
  readonly highFrequencyFactor: number;
  /** Context the model was trained with before. */
  readonly originalMaxPositions: number;
}

export interface RopeConfig {
  readonly theta: number;
  readonly scaling?: Llama3RopeScaling;
}

export type Architecture = 'qwen2' | 'llama';

/** A decoder's shape as its `config.json` gives it, under the field's names, with every default filled in. */
export interface ModelConfig {
  readonly architecture: Architecture;
  /** Rows of the embedding; may be more than the tokenizer has ids. */
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layerCount: number;
  readonly headCount: number;
  readonly kvHeadCount: number;
  readonly headDim: number;
  readonly rmsNormEpsilon: number;
  readonly rope: RopeConfig;
  /** The output matrix is the embedding. */
  readonly tieWordEmbeddings: boolean;
  /** Biases of q, k and v. */
  readonly attentionBias: boolean;
  readonly attentionOutputBias: boolean;
  /** Biases of gate, up and down. */
  readonly mlpBias: boolean;
  readonly maxPositions: number;
  readonly bosTokenId?: number;
  /** Any of them ends a generation; none if empty. */
  readonly eosTokenIds: readonly number[];
  readonly padTokenId?: number;
  /** `config.json` as it stands. */
  readonly raw: Readonly<Record<string, unknown>>;
}
