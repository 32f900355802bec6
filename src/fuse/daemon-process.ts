import { ChunkmountError, type ErrorKind, messageOf, systemHint } from '../errors.js';
import type { Server, TransportKind } from './transport.js';

/** The open /dev/fuse that whoever starts a daemon with the kernel transport hands over. */
export const FUSE_DESCRIPTOR = 3;

/** What a daemon is told by whoever started it: one of each, in this order. */
export type DaemonOrder =
  | { readonly kind: 'prepare'; readonly transport: TransportKind }
  | { readonly kind: 'begin' };

/** What a daemon tells whoever started it, once. */
export type DaemonMessage =
  | { readonly kind: 'ready'; readonly warnings: readonly string[] }
  | {
      readonly kind: 'failed';
      readonly error: ErrorKind;
      readonly message: string;
      readonly hint: string | undefined;
    };

/** How a daemon ends. */
export interface DaemonEnd {
  /** The mount is gone. Else somebody may see it until we are, and gets ENOTCONN from then on. */
  readonly unmounted: boolean;
  /** Somebody waits for us to be gone. */
  readonly hurried: boolean;
}

/** The work of a daemon. */
export interface DaemonWork {
  /** Gets ready for what it does not know yet, and touches nothing. */
  prepare(transport: TransportKind): void;
  /** Begins to serve. */
  start(): Promise<Server>;
  /** Called when the mount answers; sentences for the user. */
  ready(): readonly string[];
  /** The last thing the daemon does while it still can. Called again, while it still works, when a signal comes. */
  finish(end: DaemonEnd): Promise<void> | void;
}

/** Resolves when we are told to begin. */
function told(work: DaemonWork): Promise<void> {
  return new Promise((resolve, reject) => {
    process.on('message', (order: DaemonOrder) => {
      if (order.kind === 'begin') return resolve();
      try {
        work.prepare(order.transport);
      } catch (error) {
        reject(error);
      }
    });
  });
}

/** Tells whoever started us, if it still is there, and lets go of it. */
function report(message: DaemonMessage): void {
  process.removeAllListeners('disconnect');
  if (process.connected) process.send?.(message, undefined, undefined, () => process.disconnect());
}

/**
 * Ends the process although threads sit in /dev/fuse: exit(2) would wait for them for ever. The kernel closes the
 * descriptor, so that a mount that is still there answers ENOTCONN.
 */
function die(): never {
  process.kill(process.pid, 'SIGKILL');
  throw new Error('unreachable');
}

/** On what nobody foresaw, Node would end the process by waiting for threads that sit in /dev/fuse. */
function dieOfSurprises(): void {
  // The log may be on a disk that is full.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  for (const event of ['uncaughtException', 'unhandledRejection']) {
    process.on(event, (error: unknown) => {
      console.error(error);
      die();
    });
  }
}

/** Runs a daemon from start to end: until its mount is gone, a signal comes, or it fails. */
export async function runDaemon(work: DaemonWork): Promise<void> {
  dieOfSurprises();
  // Nobody would ever mount what we serve. While our modules were loaded nobody listened.
  process.once('disconnect', die);
  if (!process.connected) die();
  let unmounted = false;
  const end = async () => {
    await work.finish({ unmounted, hurried: true });
    die();
  };
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => void end());
  try {
    await told(work);
    const server = await work.start();
    await server.connected;
    report({ kind: 'ready', warnings: work.ready() });
    await server.ended;
    unmounted = true;
    await work.finish({ unmounted, hurried: false });
  } catch (error) {
    console.error(error);
    const [kind, hint]: [ErrorKind, string | undefined] =
      error instanceof ChunkmountError
        ? [error.kind, error.hint ?? systemHint(error)]
        : ['failed', systemHint(error)];
    report({ kind: 'failed', error: kind, message: messageOf(error), hint });
    await work.finish({ unmounted, hurried: true });
    // The message needs a moment to leave.
    setTimeout(die, 100);
  }
}
