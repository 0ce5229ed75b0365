import { StillhouseError } from '@stillhouse/errors';

/** Turns the system's error codes of a failed write into an error that says what to do. */
export function explainWriteFailure(path: string, cause: unknown): unknown {
  const code = (cause as NodeJS.ErrnoException | undefined)?.code;
  if (code === 'ENOSPC' || code === 'EDQUOT') {
    return new StillhouseError({
      code: 'DISK_FULL',
      where: path,
      problem: 'the disk is full, nothing was left behind under this name',
      remedy: 'Free space or choose another place, then run the same command again',
      cause,
    });
  }
  if (code === 'EACCES' || code === 'EROFS' || code === 'EPERM') {
    return new StillhouseError({
      code: 'NOT_WRITABLE',
      where: path,
      problem: `the file cannot be written (${code})`,
      remedy: 'Check the permissions of its folder',
      cause,
    });
  }
  return cause;
}
