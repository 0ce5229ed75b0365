import type { TransferPolicy } from '../transfer/transfer-policy.ts';

/** Short waits, so that faults cost a test milliseconds. */
export const QUICK: Partial<TransferPolicy> = {
  concurrency: 4,
  firstDelayMs: 5,
  longestDelayMs: 20,
  windowMs: 400,
  windowBytes: 1024,
};
