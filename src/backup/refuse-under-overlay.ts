import { failed, orNone } from '../errors.js';
import type { StateDirectory } from '../session/state-directory.js';
import { identityOf, isSameImage } from '../snapshot/image-identity.js';
import { recordedOverlays } from '../snapshot/overlay/others.js';

/**
 * Throws if an overlay of ours lies on an image that is to be overwritten or replaced: that is only a part of the disk then, also while
 * its VM is off and has nothing open. As far as we may read the state directory.
 */
export function refuseUnderOverlay(file: string, state: StateDirectory): void {
  const [image] = orNone(() => [identityOf(file)]);
  if (image === undefined) return;
  for (const { name, verb, overlays } of recordedOverlays(state)) {
    const found = overlays.find(({ base }) => isSameImage(base.identity, image));
    if (found === undefined) continue;
    throw failed(`${file} is only a part of the disk of ${name}: ${found.overlay} lies on it`, {
      hint: `give the VM its image back first: chunkmount ${verb} --vm=${name}`,
    });
  }
}
