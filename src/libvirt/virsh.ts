// placeholder: libvirt calls
export class Virsh {}
