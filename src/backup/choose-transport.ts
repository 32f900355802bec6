import * as fs from 'node:fs';
import { messageOf, usage } from '../errors.js';
import type { TransportKind } from '../fuse/transport.js';
import type { Reporter } from '../report/reporter.js';

/** Why the kernel transport cannot be had; undefined if it can. Mounting without a helper takes root. */
function kernelObstacle(): string | undefined {
  if (process.getuid!() !== 0) return 'mounting /dev/fuse directly takes root';
  try {
    fs.accessSync('/dev/fuse', fs.constants.R_OK | fs.constants.W_OK);
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

/** Says with `--debug` which transport is taken and why. Throws a usage error when the one asked for cannot be had. */
export function chooseTransport(wanted: 'auto' | TransportKind, reporter: Reporter): TransportKind {
  const obstacle = kernelObstacle();
  if (wanted === 'kernel' && obstacle !== undefined) {
    throw usage(`the kernel transport is not possible: ${obstacle}`, {
      hint: 'run as root, or give --transport=native',
    });
  }
  const taken = wanted === 'auto' ? (obstacle === undefined ? 'kernel' : 'native') : wanted;
  const why =
    wanted === 'auto'
      ? (obstacle ?? 'we are root and /dev/fuse is there: it is the fastest')
      : 'it was asked for';
  reporter.debug(`transport: ${taken} (${why})`);
  return taken;
}
