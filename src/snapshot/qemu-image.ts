import * as v from 'valibot';
import { failed } from '../errors.js';
import { run } from '../host/exec.js';

const info = v.object({
  'full-backing-filename': v.optional(v.string()),
  'backing-filename': v.optional(v.string()),
  'backing-filename-format': v.optional(v.string()),
});

export interface BackingLink {
  readonly path: string;
  readonly format: string | undefined;
}

export interface ImageCall {
  readonly timeoutMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** What a qcow2 file's header names as its backing file. The file must not be in use. */
export async function backingOf(overlay: string): Promise<BackingLink | undefined> {
  const { stdout } = await run('qemu-img', ['info', '--output=json', '-f', 'qcow2', overlay]);
  const parsed = v.parse(info, JSON.parse(stdout));
  const path = parsed['full-backing-filename'] ?? parsed['backing-filename'];
  return path === undefined ? undefined : { path, format: parsed['backing-filename-format'] };
}

/**
 * Writes the content of a qcow2 overlay into its backing file; the overlay stays as it is, so this can be repeated.
 * QEMU's locks make it fail when anybody has one of the two open.
 */
export async function commitOffline(overlay: string, base: BackingLink, call: ImageCall): Promise<void> {
  const actual = await backingOf(overlay);
  if (actual?.path !== base.path || actual.format !== base.format) {
    throw failed(
      `${overlay} does not lie on ${base.path} (${base.format}) but on ${actual?.path} (${actual?.format})`,
      {
        hint: 'somebody changed the chain; merge it by hand: qemu-img info --backing-chain, qemu-img commit',
      },
    );
  }
  await run('qemu-img', ['commit', '-q', '-d', '-f', 'qcow2', overlay], call);
}

/** Exit code of `qemu-img compare` for images that differ: see qemu-img(1). */
const DIFFERENT = 1;

/**
 * Whether an overlay shows the same disk as its base does alone. A VM may have the base open; what it writes meanwhile can
 * only make the answer false.
 */
export async function showsSameDisk(
  overlay: string,
  base: { path: string; format: string },
  call: ImageCall,
): Promise<boolean> {
  const args = ['compare', '-q', '-U', '-f', 'qcow2', '-F', base.format, overlay, base.path];
  return (await run('qemu-img', args, { ...call, accept: [DIFFERENT] })).exitCode === 0;
}
