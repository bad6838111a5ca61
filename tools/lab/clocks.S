# SPDX-License-Identifier: Apache-2.0
# A bare-metal guest that tells its clocks. In a loop it reads the TSC, kvmclock where the hypervisor has it, and now and
# then the HPET, and puts them where tools/lab/clocks.py reads them from outside; it counts the steps back. As a sign
# of life it prints a dot every 4096 rounds. At SHOWN (little-endian):
#   +00 u64 rounds  +08 u64 TSC  +10 u64 kvmclock, ns  +18 u64 HPET, 10 ns  +20 u32 steps back  +24 u32 has kvmclock
#define SHOWN 0x200000
#define PAGE 0x201000                     // struct pvclock_vcpu_time_info
#define HPET 0xfed00000
#define MSR_KVM_SYSTEM_TIME_NEW 0x4b564d01

.code32
.section .multiboot, "a"
.align 4
.long 0x1BADB002, 0x00010003, -(0x1BADB002 + 0x00010003)
.long 0x100000, 0x100000, 0, 0, start     # the file is loaded as it is, at 1 MiB

.text
.globl start
start:
  mov $stack_top, %esp
  mov $SHOWN, %ebp
  mov $0x40000000, %eax
  cpuid
  cmp $0x4b4d564b, %ebx       # "KVMK"; an emulated CPU answers with its highest leaf
  jne 1f
  mov $MSR_KVM_SYSTEM_TIME_NEW, %ecx
  mov $(PAGE | 1), %eax
  xor %edx, %edx
  wrmsr
  movl $1, 0x24(%ebp)
1:
  movl $1, HPET + 0x10        # count
  mov $24, %ecx               # something to be seen at once
2:
  call dot
  loop 2b

round:
  addl $1, (%ebp)
  adcl $0, 4(%ebp)
  testl $0xfff, (%ebp)
  jnz 3f
  call dot
3:
  testl $0xf, (%ebp)
  jnz 5f
4:
  mov HPET + 0xf4, %edx
  mov HPET + 0xf0, %eax
  cmp HPET + 0xf4, %edx
  jne 4b
  lea 0x18(%ebp), %edi
  call show
5:
  cmpl $0, 0x24(%ebp)
  je 9f
6:
  mov PAGE, %esi              # version, odd while it changes
  test $1, %esi
  jnz 6b
  rdtsc
  sub PAGE + 8, %eax
  sbb PAGE + 12, %edx
  jnc 7f
  xor %eax, %eax
  xor %edx, %edx
7:
  movsbl PAGE + 28, %ecx
  test %ecx, %ecx
  js 8f
  shld %cl, %eax, %edx
  shl %cl, %eax
  jmp scale
8:
  neg %ecx
  shrd %cl, %edx, %eax
  shr %cl, %edx
scale:                        # edx:eax * mul >> 32, + system_time
  mov %edx, %ebx
  mull PAGE + 24
  mov %edx, %edi
  mov %ebx, %eax
  mull PAGE + 24
  add %edi, %eax
  adc $0, %edx
  add PAGE + 16, %eax
  adc PAGE + 20, %edx
  cmp %esi, PAGE
  jne 6b
  lea 0x10(%ebp), %edi
  call show
9:
  rdtsc
  lea 8(%ebp), %edi
  call show
  jmp round

show:                         # edx:eax to (edi) in one piece, counted when it is less than what was there
  mov %eax, %ebx
  mov %edx, %ecx
  mov (%edi), %eax
  mov 4(%edi), %edx
  push %ebx
  push %ecx
  sub %eax, %ebx
  sbb %edx, %ecx
  pop %ecx
  pop %ebx
  jnc 1f
  incl 0x20(%ebp)
1:
  cmpxchg8b (%edi)            # nobody else writes there, so it is always done
  ret

dot:
  push %edx
  mov $0x3f8, %dx
  mov $'.', %al
  out %al, %dx
  pop %edx
  ret

.align 16
.space 256
stack_top:
