"""Instructions that compiled code is written with and that Numba does not have."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj


@intrinsic
def pointer(typing, address):
    """Return a pointer for an integer."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def array_at(typing, address, count, dtype):
    """Return the array of some numbers or records at an address.

    As :func:`numba.carray`, which compiles a function anew for each dtype.
    """
    kind = types.Array(dtype.dtype, 1, "C", aligned=True)

    def generate(context, builder, signature, args):
        array = arrayobj.make_array(kind)(context, builder)
        item = context.get_data_type(kind.dtype)
        size = context.get_constant(types.intp, context.get_abi_sizeof(item))
        data = builder.inttoptr(args[0], item.as_pointer())
        arrayobj.populate_array(
            array, data=data, shape=[args[1]], strides=[size], itemsize=size, meminfo=None
        )
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), generate


@intrinsic
def fetch(typing, address):
    """Begin to read the cache line at an address, whatever is there."""

    def generate(context, builder, signature, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(prefetch, [builder.inttoptr(args[0], byte), number(0), number(3), number(1)])

    return types.none(types.int64), generate


@intrinsic
def take(typing, counter):
    """Return a count, and raise it by one for whichever thread asks next."""

    def generate(context, builder, signature, args):
        count = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", count, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr), generate
