/** The part of fuse-native 2.2.6 that we use; it has no types of its own. Error numbers are negative. */
declare module 'fuse-native' {
  export interface Stat {
    readonly mode: number;
    /** 32 bits are passed on. */
    readonly ino: number;
    readonly size?: number;
    readonly blocks?: number;
    readonly blksize?: number;
    readonly nlink?: number;
    readonly uid?: number;
    readonly gid?: number;
    /** Milliseconds since the epoch. */
    readonly atime?: number;
    readonly mtime?: number;
    readonly ctime?: number;
  }

  /** 32 bits of each number are passed on. */
  export interface Statfs {
    readonly bsize: number;
    readonly frsize: number;
    readonly blocks: number;
    readonly files: number;
    readonly namemax: number;
  }

  export interface Operations {
    statfs(path: string, done: (error: number, statfs?: Statfs) => void): void;
    getattr(path: string, done: (error: number, stat?: Stat) => void): void;
    readdir(
      path: string,
      done: (error: number, names?: readonly string[], stats?: readonly Stat[]) => void,
    ): void;
    /** `done` takes the number of bytes, or an error. */
    read(
      path: string,
      fd: number,
      buffer: Buffer,
      length: number,
      position: number,
      done: (result: number) => void,
    ): void;
    /** Only tell which calls are implemented, as we replace their `_op_` methods. */
    getxattr: true;
    listxattr: true;
  }

  /** Answers a call: a length or an error, and the buffer's memory, which is taken away from us. */
  export type XattrReply = (result: number, memory: ArrayBufferLike) => void;

  export default class Fuse {
    constructor(mountpoint: string, operations: Operations, options: { readonly timeout: false });
    /** Called by `close`. */
    static unmount: (mountpoint: string, done: (error?: Error | null) => void) => void;
    open(done: (error?: Error | null) => void): void;
    close(done: (error?: Error | null) => void): void;
    /** The mount options as one argument of libfuse. */
    _fuseOptions(): string;
    _op_getxattr(reply: XattrReply, path: string, name: string, buffer: Buffer): void;
    _op_listxattr(reply: XattrReply, path: string, buffer: Buffer): void;
  }
}
