import { access } from 'node:fs/promises';

/** False also for a link whose target is gone. */
export const pathExists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );
