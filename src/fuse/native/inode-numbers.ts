/** libfuse's binding for Node knows 32 bits of an inode number only. */
export interface InodeNumbers {
  /** What stat(2) shows of an inode number of the file system: below 2^32, and none for two files. */
  of(inode: number): number;
}

/** For file systems whose own numbers are small enough. */
export const SMALL_INODES: InodeNumbers = { of: (inode) => inode };
