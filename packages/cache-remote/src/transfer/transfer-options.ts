import { DEFAULT_POLICY, type TransferPolicy } from './transfer-policy.ts';

export interface TransferProgress {
  readonly files: number;
  readonly totalFiles: number;
  readonly bytes: number;
  readonly totalBytes: number;
}

export interface TransferOptions {
  /** Any part of {@link DEFAULT_POLICY} to change. */
  readonly policy?: Partial<TransferPolicy>;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: TransferProgress) => void;
}

export interface ResolvedTransfer {
  readonly policy: TransferPolicy;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: ((progress: TransferProgress) => void) | undefined;
}

export const resolveTransfer = ({ policy, signal, onProgress }: TransferOptions): ResolvedTransfer => ({
  policy: { ...DEFAULT_POLICY, ...policy },
  signal,
  onProgress,
});
