import type { Element } from '@xmldom/xmldom';
import { attribute, child, children, textOf } from './xml.js';

/** Where distributions install QEMU: /usr/bin/qemu-system-x86_64, /usr/bin/kvm, /usr/libexec/qemu-kvm. */
const USUAL_EMULATOR = /^\/usr\/(bin\/(qemu-system-[a-z0-9_]+|qemu-kvm|kvm)|libexec\/qemu-kvm)$/;

/** See https://libvirt.org/drvqemu.html#pass-through-of-arbitrary-qemu-commands. */
const QEMU_NAMESPACE = 'http://libvirt.org/schemas/domain/qemu/1.0';

/** Devices for characters whose other end is a file or device of the host. */
const CHARACTER_DEVICES = ['serial', 'parallel', 'console', 'channel', 'smartcard', 'redirdev'];
const HOST_ENDS = ['file', 'dev', 'pipe'];

/** An emulator that is not there is left out, so that libvirt takes its own. */
function emulator(devices: Element, exists: (path: string) => boolean): string[] {
  const element = child(devices, 'emulator');
  const path = textOf(element);
  if (element === undefined || path === undefined || (USUAL_EMULATOR.test(path) && exists(path))) return [];
  if (exists(path)) return [`it runs ${path} as its emulator`];
  devices.removeChild(element);
  return [`its emulator ${path} is not on this host: libvirt takes its own`];
}

/** Elements of libvirt's way to bypass libvirt, whatever prefix the XML gives it. */
function qemuElements(parent: Element, name: string): Element[] {
  const found: Element[] = [];
  for (let node = parent.firstChild; node !== null; node = node.nextSibling) {
    if (node.nodeType !== node.ELEMENT_NODE) continue;
    const element = node as Element;
    if (element.namespaceURI === QEMU_NAMESPACE && element.localName === name) found.push(element);
  }
  return found;
}

function commandLine(domain: Element): string[] {
  const notices = qemuElements(domain, 'commandline').flatMap((element) => {
    const env = qemuElements(element, 'env').map(
      (one) => `${attribute(one, 'name') ?? ''}=${attribute(one, 'value') ?? ''}`,
    );
    const args = qemuElements(element, 'arg').map((arg) => attribute(arg, 'value') ?? '');
    return env.length + args.length === 0 ? [] : [[...env, ...args].join(' ')];
  });
  return [
    ...notices.map((text) => `it gives QEMU arguments of its own: ${JSON.stringify(text)}`),
    ...(qemuElements(domain, 'override').length > 0
      ? ['it changes what libvirt tells QEMU (qemu:override)']
      : []),
  ];
}

function missingFiles(domain: Element, exists: (path: string) => boolean): string[] {
  return ['loader', 'kernel', 'initrd', 'dtb'].flatMap((name) => {
    const path = textOf(child(domain, 'os', name));
    if (path?.startsWith('/') !== true || exists(path)) return [];
    return [`its ${name} ${path} is not on this host: install it, or change the path (virsh edit)`];
  });
}

function scripts(devices: Element): string[] {
  return children(devices, 'interface').flatMap((card) =>
    ['script', 'downscript'].flatMap((name) => {
      const path = attribute(child(card, name), 'path');
      return path === undefined || path === '' ? [] : [`a network card runs ${path} on this host`];
    }),
  );
}

function sharedDirectories(devices: Element): string[] {
  return children(devices, 'filesystem').map((one) => {
    const source = child(one, 'source');
    const directory = attribute(source, 'dir') ?? attribute(source, 'file') ?? attribute(source, 'dev');
    return `the guest sees ${directory === undefined ? 'a directory' : `the directory ${directory}`} of this host`;
  });
}

/** What lasts in them lies in a file or device of the host, which no snapshot and no tree has. */
function memoryModules(devices: Element): string[] {
  return children(devices, 'memory').flatMap((one) => {
    const path = textOf(child(one, 'source', 'path'));
    return path === undefined ? [] : [`a memory module of the guest is ${path} of this host`];
  });
}

/** What a guest keeps in an emulated one lies in libvirt's own directory, by the VM's UUID, and is not in a backup. */
function trustedModules(devices: Element): string[] {
  return children(devices, 'tpm').map((one) => {
    const backend = child(one, 'backend');
    if (attribute(backend, 'type') === 'emulator')
      return 'what the guest kept in its TPM, such as keys of its disk encryption, is not in the backup';
    const device = attribute(child(backend, 'device'), 'path') ?? attribute(child(backend, 'source'), 'path');
    return `its TPM is ${device ?? 'one'} of this host`;
  });
}

function passedDevices(devices: Element): string[] {
  return children(devices, 'hostdev').map(
    (one) => `the guest is given a device of this host (${attribute(one, 'type') ?? 'unknown'})`,
  );
}

function hostEnds(devices: Element): string[] {
  return CHARACTER_DEVICES.flatMap((name) => children(devices, name)).flatMap((device) => {
    const path = attribute(child(device, 'source'), 'path');
    const log = attribute(child(device, 'log'), 'file');
    const type = attribute(device, 'type') ?? '';
    return [
      ...(HOST_ENDS.includes(type) && path !== undefined
        ? [`a ${device.nodeName} device writes to ${path}`]
        : []),
      ...(log === undefined ? [] : [`a ${device.nodeName} device writes to ${log}`]),
    ];
  });
}

/**
 * What of a definition reaches into the host, beyond what every VM does, or misses something there: one clause each. The
 * XML came with a backup, and nobody has looked at it on this host.
 */
export function hostReach(domain: Element, exists: (path: string) => boolean): string[] {
  const devices = child(domain, 'devices');
  const unconfined = children(domain, 'seclabel').some((label) => attribute(label, 'type') === 'none');
  return [
    ...commandLine(domain),
    ...missingFiles(domain, exists),
    ...(unconfined ? ['its QEMU is not confined (seclabel none)'] : []),
    ...(devices === undefined
      ? []
      : [
          ...emulator(devices, exists),
          ...scripts(devices),
          ...sharedDirectories(devices),
          ...memoryModules(devices),
          ...trustedModules(devices),
          ...passedDevices(devices),
          ...hostEnds(devices),
        ]),
  ];
}
