import type { ManifestBody } from '../format/manifest.ts';
import type { WriterPlan } from './writer-plan.ts';

/** What a build has finished, as it is written down for a later run. One change at a time. */
export interface CommittedState {
  readonly body: ManifestBody;
  /** Whoever writes a file of the cache asks first. */
  requireOpen(): void;
  /** The change stands once this settles. @throws StillhouseError CACHE_LOCK_LOST */
  commit(change: Partial<ManifestBody>): Promise<void>;
  /** Writes the cache down as complete. @throws StillhouseError CACHE_LOCK_LOST */
  publish(): Promise<void>;
  /** Gives the folder back to other builders. */
  close(): Promise<void>;
}

export function openCommittedState({ lock, persist, publish }: WriterPlan, initial: ManifestBody): CommittedState {
  let body = initial;
  let isOpen = true;
  const requireOpen = () => {
    if (!isOpen) throw new Error('the cache writer is closed');
  };
  const replace = async (next: ManifestBody, write: (state: ManifestBody) => Promise<void>) => {
    requireOpen();
    await lock.requireHeld();
    await write(next);
    body = next;
  };
  return {
    get body() {
      return body;
    },
    requireOpen,
    commit: (change) => replace({ ...body, ...change }, persist),
    publish: () => replace({ ...body, complete: true }, publish),
    close: async () => {
      if (!isOpen) return;
      isOpen = false;
      await lock.release();
    },
  };
}
