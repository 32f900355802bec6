import { randomUUID } from 'node:crypto';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { ManifestExtra } from '../chunks/manifest.js';
import { ChunkmountError, messageOf, systemCode, usage } from '../errors.js';
import type { DiskImage } from '../libvirt/clone-disks.js';
import { type CloneRequest, cloneXml } from '../libvirt/clone-xml.js';
import { parseDefinition } from '../libvirt/definition.js';
import type { Virsh } from '../libvirt/virsh.js';
import { child, rootOf, textOf } from '../libvirt/xml.js';
import type { Reporter } from '../report/reporter.js';
import type { Tree } from './tree.js';
import { checkExtra, extraOf } from './tree-extra.js';
import { freeName } from './vm-name.js';

/** As libvirt writes it. */
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

export interface VmRequest {
  readonly tree: Tree;
  /** As the user gave it; `otherwise` if they did not. */
  readonly name: string | undefined;
  readonly otherwise: string;
  /** Directory for images. */
  readonly storage: string;
  /** Keep UUID and MAC addresses. */
  readonly sameIdentity: boolean;
  readonly format: DiskImage['format'];
  /** The images are overlays on something that lies elsewhere. */
  readonly overlay: boolean;
  readonly network: boolean;
}

/** A VM that can be made of a tree: nothing of it is there yet, and everything that can be checked beforehand has been. */
export interface VmPlan {
  readonly name: string;
  readonly uuid: string;
  /** Absolute, free of symbolic links. */
  readonly storage: string;
  readonly disks: readonly DiskImage[];
  readonly nvram: { readonly extra: ManifestExtra; readonly file: string } | undefined;
  /** The definition. */
  readonly xml: string;
  /** What has been said about it. */
  readonly notices: readonly string[];
  /** The request for it, to make the same of other XML of this VM. */
  readonly clone: CloneRequest;
}

function storageDirectory(given: string): string {
  try {
    const directory = fs.realpathSync(given);
    if (fs.statSync(directory).isDirectory()) return directory;
  } catch (error) {
    if (systemCode(error) !== 'ENOENT') throw error;
    throw usage(`the directory ${given} does not exist`, {
      hint: `make it, or give another --storage: mkdir ${given}`,
      cause: error,
    });
  }
  throw usage(`${given} is no directory`, { hint: 'give another --storage' });
}

/** Reads the domain XML of a tree. Throws a usage error if there is none. */
function readDomainXml(tree: Tree): string {
  const { domainXml } = tree.manifest;
  if (domainXml !== null) return tree.readText(domainXml);
  throw usage(`${tree.root} is the backup of an image, not of a VM: it has no domain XML`, {
    hint: 'restore the image: chunkmount restore TREE --to=FILE',
  });
}

/** Runs what reads a tree's XML: what is wrong with it is damage of the tree. */
function reading<T>(tree: Tree, work: () => T): T {
  try {
    return work();
  } catch (error) {
    const file = path.join(tree.root, tree.manifest.domainXml ?? '');
    throw new ChunkmountError('integrity', `${file}: ${messageOf(error)}`, {
      hint: 'take it from another copy of this backup',
      cause: error,
    });
  }
}

function uuidIn(xml: string): string | undefined {
  const uuid = textOf(child(rootOf(parseDefinition(xml)), 'uuid'))?.toLowerCase();
  return uuid !== undefined && UUID.test(uuid) ? uuid : undefined;
}

/** The files that the VM will have: images, NVRAM. */
export function filesOf(plan: Pick<VmPlan, 'disks' | 'nvram'>): string[] {
  return [...plan.disks.map(({ file }) => file), ...(plan.nvram === undefined ? [] : [plan.nvram.file])];
}

/**
 * Decides on name, UUID, files and definition, and says with notices what is special about the VM. Changes nothing. Throws:
 * usage errors for what cannot be, kind `integrity` for damaged XML or NVRAM.
 */
export async function planVm(virsh: Virsh, request: VmRequest, reporter: Reporter): Promise<VmPlan> {
  const { tree, sameIdentity, format, overlay, network } = request;
  const original = readDomainXml(tree);
  const oldUuid = reading(tree, () => uuidIn(original));
  const uuid = sameIdentity ? oldUuid : randomUUID();
  if (uuid === undefined)
    throw usage(`${tree.root} has no UUID to keep`, { hint: 'leave out --same-identity' });
  const storage = storageDirectory(request.storage);
  const { name: wanted, otherwise } = request;
  const name = await freeName(virsh, { wanted, otherwise, uuid });
  const disks = tree.manifest.disks.map(({ target }) => ({
    target,
    file: path.join(storage, `${name}-${target}.${format}`),
    format,
    overlay,
  }));
  const extra = extraOf(tree, 'nvram');
  if (extra !== undefined) checkExtra(tree, extra);
  const nvram = extra === undefined ? undefined : { extra, file: path.join(storage, `${name}_VARS.fd`) };
  const clone: CloneRequest = {
    name,
    identity: sameIdentity ? { kind: 'same' } : { kind: 'new', uuid },
    disks,
    nvram: nvram?.file,
    network,
    exists: fs.existsSync,
  };
  const { xml, notices } = reading(tree, () => cloneXml(original, clone));
  for (const notice of notices) reporter.notice(`${name}: ${notice}`);
  return { name, uuid, storage, disks, nvram, xml, notices, clone };
}
