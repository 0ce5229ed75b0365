/**
 * Files that are either whole or absent: written under a temporary name, synced, then renamed; and locks of folders.
 */
export { pathExists, readTextIfThere } from './absent-files.ts';
export { type FileDigest, hashFile, sha256Of } from './digest.ts';
export { type FolderLock, type LockTimes, lockFolder } from './folder-lock.ts';
export { makeFolder } from './make-folder.ts';
export { publishDirectory, stageDirectory } from './staged-directory.ts';
export { type StagedFile, stageFile, syncDirectory, writeFileAtomically } from './staged-file.ts';
export { explainWriteFailure } from './write-failure.ts';
