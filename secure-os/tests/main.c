#include "tests/unit.h"

int main(int count, char **arguments)
{
	host_witness = check_witness;
	return check_run(count, arguments);
}
