"""Named methods: one row a method, one small file behind it."""

from caopd_verl.methods.caopd import caopd
from caopd_verl.methods.method import Method
from caopd_verl.methods.sdpo import sdpo

METHODS: dict[str, Method] = {
    "sdpo": sdpo,
    "caopd": caopd,
}
