/* It does what it may not: reads the kernel's memory. */
#include <stdio.h>

int main(void)
{
	printf("%d\n", *(volatile int *)0xffffff800e100000);
	return 0;
}
