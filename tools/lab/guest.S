# SPDX-License-Identifier: Apache-2.0
# A bare-metal guest for the capture path: it needs no firmware call, no driver and no interrupt, so it runs under KVM
# even where nesting cannot boot a stock kernel. Each round it writes WRITES pages, one increment each, reads READS
# pages, and prints "cccccccc tttttttt": the round's number and its length in TSC ticks (low 32 bits), in hex.
# The pages lie from 4 MiB up; the read ones follow the written ones. -DWRITES=... -DREADS=... set the mode.
# After each round it does what the test wrote to ORDER: 1 power off, 2 reset, 3 write 16 sectors of the IDE disk, the
# next ones each time.
#define BASE 0x400000
#define ORDER 0x300000
#define PAGE 4096

.code32
.section .multiboot, "a"
.align 4
.long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003)
.long 0x100000, 0x100000, 0, 0, start     # the file is loaded as it is, at 1 MiB

.text
.globl start
start:
  mov $stack_top, %esp
  xor %ebx, %ebx              # number of the round
  movl $0, sector
round:
  rdtsc
  mov %eax, %ebp
  mov $BASE, %edi
  mov $WRITES, %ecx
1:
  incl (%edi)
  add $PAGE, %edi
  loop 1b
#if READS > 0
  mov $READS, %ecx
2:
  mov (%edi), %eax
  add $PAGE, %edi
  loop 2b
#endif
  inc %ebx
  rdtsc
  sub %ebp, %eax
  mov %eax, %ebp
  mov %ebx, %eax
  call print_hex
  mov $' ', %al
  call print_char
  mov %ebp, %eax
  call print_hex
  mov $'\n', %al
  call print_char
  mov ORDER, %eax
  cmp $1, %eax
  jne 5f
  mov $0x604, %dx             # the chipset's PM1 control, where firmware puts it: S5
  mov $0x2000, %ax
  out %ax, %dx
  jmp round
5:
  cmp $2, %eax
  jne 6f
  mov $0xcf9, %dx
  mov $6, %al
  out %al, %dx
  jmp round
6:
  cmp $3, %eax
  jne round
  mov $16, %edi
10:
  call write_sector
  dec %edi
  jnz 10b
  jmp round

write_sector:                 # by programmed I/O, to the master of the first channel
  mov $0x1f6, %dx
  mov $0xe0, %al
  out %al, %dx
  mov $0x1f2, %dx
  mov $1, %al
  out %al, %dx
  mov sector, %ecx
  mov $0x1f3, %dx
  mov %cl, %al
  out %al, %dx
  inc %dx
  mov %ch, %al
  out %al, %dx
  inc %dx
  shr $16, %ecx
  mov %cl, %al
  out %al, %dx
  mov $0x1f7, %dx
  mov $0x30, %al
  out %al, %dx
7:                            # until it wants the data
  in %dx, %al
  test $8, %al
  jz 7b
  mov $0x1f0, %dx
  mov $256, %ecx
8:
  mov sector, %eax
  not %eax
  out %ax, %dx
  loop 8b
  mov $0x1f7, %dx
9:                            # until it is done
  in %dx, %al
  test $0x80, %al
  jnz 9b
  incl sector
  ret

print_hex:                    # eax, as 8 digits
  mov %eax, %esi
  mov $8, %ecx
3:
  rol $4, %esi
  mov %esi, %eax
  and $15, %eax
  cmp $10, %al
  jb 4f
  add $('a' - '0' - 10), %al
4:
  add $'0', %al
  call print_char
  loop 3b
  ret

print_char:                   # al; QEMU's serial port is never busy, and each port access costs an exit
  mov $0x3f8, %dx
  out %al, %dx
  ret

.align 16
sector:
.long 0
.align 16
.space 256
stack_top:
