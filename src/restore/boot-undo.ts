import { ChunkmountError, failed, messageOf } from '../errors.js';
import type { StateDirectory } from '../session/state-directory.js';
import { type UndoContext, undoAll } from '../session/undo.js';
import { pauseUndo } from '../snapshot/pause.js';
import { BOOT_DOMAIN, bootDomainUndo } from './boot-domain.js';
import { BOOT_FILE, bootFileUndo } from './boot-file.js';
import { BOOT_MOUNT, bootMountUndo } from './boot-mount.js';
import { bootUndo, withBoot } from './boot-state.js';

const HANDLERS = { ...bootUndo, ...bootFileUndo, ...bootMountUndo, ...bootDomainUndo, ...pauseUndo };

/** What runs needs its images, and what has files open needs what lies below them. */
const BARRIERS: ReadonlySet<string> = new Set([BOOT_DOMAIN, BOOT_FILE, BOOT_MOUNT]);

/** After a boot that failed: undoes it, or warns that something is left. */
export async function giveUpBoot(name: string, context: UndoContext, remove: () => void): Promise<void> {
  const problems = await undoBootSteps(context);
  if (problems.length === 0) return remove();
  for (const problem of problems) context.reporter.warn(messageOf(problem));
  context.reporter.warn(`something is left of ${name}: run chunkmount boot --discard ${name}`);
}

async function undoBootSteps(context: UndoContext): Promise<Error[]> {
  return undoAll(context, HANDLERS, BARRIERS);
}

export interface DiscardContext extends Pick<UndoContext, 'reporter' | 'signal'> {
  /** Throws if something that is to be ended first lies on one of these files. */
  readonly refuseBelow: (files: readonly string[]) => void;
}

/**
 * Throws a booted VM away: ends it, and removes its definition, its overlays and the mount of the images. Works after a crash at any
 * point, and when run twice. Throws when something is left, which another call goes on with.
 */
export async function discardBoot(
  state: StateDirectory,
  name: string,
  { reporter, signal, refuseBelow }: DiscardContext,
): Promise<void> {
  await withBoot(state, name, { create: false }, async ({ journal, record, remove }) => {
    refuseBelow((record?.disks ?? []).map(({ overlay }) => overlay));
    const problems = await undoBootSteps({ journal, reporter, signal });
    const [first] = problems;
    if (first === undefined) return remove();
    if (problems.length === 1 && first instanceof ChunkmountError) throw first;
    throw failed(`${name} could not be discarded: ${problems.map(({ message }) => message).join('; ')}`, {
      hint: `mend that, then run it again: chunkmount boot --discard ${name}`,
      cause: first,
    });
  });
}
