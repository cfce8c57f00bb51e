import sys

from bigmodel_ext.cli import main

sys.exit(main())
