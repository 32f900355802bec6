import { refuseUnderOverlay } from '../backup/refuse-under-overlay.js';
import { refuseUnderLayers } from '../chain/refuse-under-layers.js';
import type { StateDirectory } from '../session/state-directory.js';

/** Throws if one of the files that are to be overwritten is only a part of a VM's disk, by what we know in `state`. */
export function refusePartsOfDisks(files: readonly string[], state: StateDirectory): void {
  for (const file of files) {
    refuseUnderOverlay(file, state);
    refuseUnderLayers(file, state);
  }
}
