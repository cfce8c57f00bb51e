// A loop of one instruction (a macro of the destination register) over 24 independent registers, in assembly: what is
// measured is that instruction and no compiler's choice. `iterations` is counted down.
#pragma once

#define BIGMODEL_EIGHT(I, a, b, c, d, e, f, g, h) I(a) I(b) I(c) I(d) I(e) I(f) I(g) I(h)
#define BIGMODEL_EACH_OF_24(I)                                    \
  BIGMODEL_EIGHT(I, "0", "1", "2", "3", "4", "5", "6", "7")       \
  BIGMODEL_EIGHT(I, "8", "9", "10", "11", "12", "13", "14", "15") \
  BIGMODEL_EIGHT(I, "16", "17", "18", "19", "20", "21", "22", "23")
#define BIGMODEL_CLEAR(r) "vpxorq %%zmm" r ", %%zmm" r ", %%zmm" r "\n\t"
#define BIGMODEL_PEAK_LOOP(instruction)                                                                             \
  __asm__ volatile(BIGMODEL_EACH_OF_24(BIGMODEL_CLEAR) BIGMODEL_CLEAR("30") BIGMODEL_CLEAR(                         \
                       "31") ".p2align 6\n1:\n\t" BIGMODEL_EACH_OF_24(instruction) "dec %0\n\tjnz 1b\n\tvzeroupper" \
                   : "+r"(iterations)                                                                               \
                   :                                                                                                \
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                     "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20",      \
                     "xmm21", "xmm22", "xmm23", "xmm29", "xmm30", "xmm31")
