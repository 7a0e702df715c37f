/* CBMC's words: a value that may be any; what is taken for granted; what is to be proved. */
#ifndef CBMC_H
#define CBMC_H

bool nondet_bool(void);
u8 nondet_u8(void);
u32 nondet_u32(void);
u64 nondet_u64(void);
#define assume(condition) __CPROVER_assume(condition)
#define prove(condition, law) __CPROVER_assert(condition, law)

/* What must be possible, or a proof would say nothing: looked for by refute.py. */
#ifdef COVER
#define possible(condition) __CPROVER_cover(condition)
#else
#define possible(condition) ((void)(condition))
#endif

#endif
